"""Token substitution: how the shipped adapted model was made, end to end (`python -m recipes.token_substitution`).

sources.py      free text, English and Russian, out of Debian packages
corpus.py       cleaned, without repetition, split by document
vocabulary.py   which tokens go, which come, and the tokenizer rewritten
initialise.py   what the new rows are before training
translate.py    rows for new tokens out of their translations
substituted.py  a tied model whose new rows alone are trained
train.py        the new rows trained, everything else frozen, resumable
measure.py      bits per character, tokens, continuations
publish.py      the checkpoint in PEFT's format, the tables, the card
"""
