"""Small tasks that ask for one ability each: recall, copying, counting, nesting, and statistics in context."""

from icll_zoo import hookimpl

TASKS = {
    "mqar": ("mqar:MultiQueryRecall", "arXiv:2312.04927", {}),
    "associative-recall": ("recall:AssociativeRecall", "arXiv:2401.12973", {}),
    "induction-head": ("induction:InductionHead", "arXiv:2212.14052", {}),
    # arXiv:2312.00752 has 4,096 tokens; its other options are these.
    "copying": ("copying:Copying", "arXiv:2402.01032", {"selective": {"span": 16, "noise": 240, "vocab_size": 20}}),
    "markov-chains": ("markov:MarkovChains", "arXiv:2402.11004", {"bayes": {"oracle_knows": "prior"}}),
    "ngram-statistics": ("ngrams:NgramStatistics", "http://www.inference.org.uk/mackay/abstracts/lang4.html", {}),
    "dyck": ("dyck:Dyck", "arXiv:2010.07515", {}),
    "parity": ("modular:parity", "arXiv:1906.06755", {}),
    "modular-counting": ("modular:ModularCounting", "arXiv:2207.02098", {}),
    "hmm": ("hmm:HiddenMarkov", "arXiv:2111.02080", {}),
}


@hookimpl
def register_datasets(register):
    for name, (target, paper, presets) in TASKS.items():
        register(name, f"icll_zoo_tasks.{target}", presets=presets, license="Apache-2.0", paper=paper)
