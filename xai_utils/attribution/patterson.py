"""Nested quadrature by the Gauss-Kronrod-Patterson rules of 3, 7, 15 and 31 nodes.

Source: Patterson 1968, doi 10.1090/S0025-5718-68-99866-9.

Every second node of a rule belongs to the rule below it, so a larger rule reuses all that a smaller one has computed.
A rule of n nodes is exact for polynomials up to degree (3 n + 1) / 2. Nodes and weights are the published constants
for [-1, 1]; the rules are symmetric, so only nodes from 0 upwards stand here.
"""

from functools import cache

import numpy as np
from jaxtyping import Float

# fmt: off
_NODES = (
    0.0, 0.11248894313318658, 0.22338668642896686, 0.3311353932579768, 0.43424374934680254, 0.5313197436443757,
    0.6211029467372264, 0.702496206491527, 0.7745966692414834, 0.8367259381688688, 0.8884592328722571,
    0.9296548574297401, 0.9604912687080203, 0.98153114955374, 0.993831963212755, 0.9990981249676676,
)
_WEIGHTS = (
    (0.8888888888888888, 0.5555555555555556),
    (0.45091653865847414, 0.40139741477596225, 0.26848808986833345, 0.10465622602646726),
    (0.2255104997982067, 0.2191568584015875, 0.20062852937698902, 0.1715119091363914, 0.13441525524378423,
     0.09292719531512454, 0.05160328299707974, 0.01700171962994026),
    (0.11275525672076869, 0.11195687302095346, 0.10957842105592464, 0.1056698935802348, 0.10031427861179558,
     0.09362710998126447, 0.08575592004999034, 0.07687962049900353, 0.0672077542959907, 0.05697950949412336,
     0.04646289326175799, 0.03595710330712932, 0.025807598096176654, 0.01644604985438781, 0.008434565739321106,
     0.0025447807915618746),
)
# fmt: on


@cache
def rule(level: int) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"]]:
    """Nodes in (0, 1) in rising order and their weights, which sum to 1: 3, 7, 15 or 31 for level 0 to 3.

    >>> nodes, weights = rule(0)
    >>> float(weights @ nodes**3)  # the integral of x^3 over [0, 1]
    0.25
    """
    upper = np.array(_NODES[:: 8 >> level])
    weights = np.array(_WEIGHTS[level])
    nodes = np.concatenate([-upper[:0:-1], upper])
    return (nodes + 1) / 2, np.concatenate([weights[:0:-1], weights]) / 2
