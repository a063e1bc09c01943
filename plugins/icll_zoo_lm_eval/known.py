"""How lm-eval comes to know the model of this plugin: by its registry, imported when it is asked for."""

NAME = "icll-zoo"
TARGET = "icll_zoo_lm_eval.model:ZooModel"


def make_known() -> None:
    """Register the model, unless lm-eval has found its entry point already."""
    import lm_eval.models  # noqa: F401  lm-eval fills an empty registry with its own models only
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)
