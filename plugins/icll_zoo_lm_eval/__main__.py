"""The command line of lm-eval, to which the model `icll-zoo` is known: `python -m icll_zoo_lm_eval run --model ...`."""

from __future__ import annotations

import sys

from icll_zoo_lm_eval.known import make_known

if __name__ == "__main__":
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        print("error: lm-eval is not installed (pip install 'icll-zoo[lm-eval]')", file=sys.stderr)
        sys.exit(2)
    make_known()
    cli_evaluate()
