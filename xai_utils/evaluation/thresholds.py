"""Where a check of the trust card passes and where it fails: all numbers that are judgements, each with its reason."""

COMPETENT = 0.01  # probability of the answer under one of the models, below which there is nothing to explain
SURE = 0.5  # probability of the answer: above it, it is what the model says
STANDS = 0.75  # share of words with one sign over the panel: three of four
TOSSED = 0.5  # below it, a word is as likely to change its sign as to keep it
ALIKE = 0.5  # mean rank correlation between absences: half of a ranking's order is common to them
UNALIKE = 0.2  # with five words, a correlation that one pair in three reaches by chance
FAITHFUL = 0.6  # share of the best order, on absences not its own: over half way from an average order to the best
CHANCE = 0.25  # a quarter of that way, which one random order in three or four reaches on a text of a few words
CONTROLLED = 0.5  # rank correlation with an untrained twin's scores: less than half of the ranking is there untrained
SAME = 0.8  # at which the twin that learnt nothing gets the same explanation
