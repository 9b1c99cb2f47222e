"""How models/smollm2-135m-help was made: a LoRA (Hu et al. 2021) on English help texts, in PEFT's own format.

Every linear layer of the body learns, no row of the embedding does, so that tokenizer and vocabulary are the base's
and the whole change lies in the body. Corpus, split and measure are those of `recipes.token_substitution`.
"""
