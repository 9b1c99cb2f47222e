"""Claims of the original study that the published study and the corpus study both put to a test, worded once."""

EVEN = "The adapted model spreads importance more evenly"
LESS = "The adapted model's negative attributions are smaller"
AGREE = "Integrated gradients and ablation agree on which words matter"
MARK = "“?” inhibits the answer"
MARKS = "Other punctuation marks inhibit the answer too"
FIRST = "Integrated gradients give the first position a large negative share"
