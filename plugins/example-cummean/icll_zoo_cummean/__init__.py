"""The plugin's registration; the class itself is imported when somebody first asks for it."""

from icll_zoo import hookimpl


@hookimpl
def register_mixers(register):
    register("cummean", "icll_zoo_cummean.mixer:CumulativeMean", license="Apache-2.0", paper="unpublished")
