"""Token log-probabilities, entropies and TECA of language models, fused, in bounded memory, with gradients.

logprobs_and_entropy          logits (..., V)                        from_logits.py
linear_logprobs_and_entropy   hidden (..., D), weight (V, D)         from_hidden.py
target_statistics             several targets a row, top-1, logits   logits_targets.py
linear_target_statistics      the same from hidden states            hidden_targets.py
linear_topk_logprobs          the k most probable tokens             hidden_targets.py
linear_token_loss             the same and a loss, in one pass       token_loss.py
teca, teca_last               entropies -> cumulative average        teca.py
cer_reward                    TECA, correctness -> reward            reward.py
build_info                    what was built, what is used           build_info.py
reference                     all of it in plain torch               reference.py
"""

import pkgutil

# In a source tree without a built _C, as after `pip install .`, the installed package's _C is found beside it.
__path__ = pkgutil.extend_path(__path__, __name__)

from cer_ext import reference
from cer_ext.build_info import build_info
from cer_ext.from_hidden import linear_logprobs_and_entropy
from cer_ext.from_logits import logprobs_and_entropy
from cer_ext.hidden_targets import TargetStatistics, TopK, linear_target_statistics, linear_topk_logprobs
from cer_ext.logits_targets import target_statistics
from cer_ext.reward import cer_reward
from cer_ext.teca import teca, teca_last
from cer_ext.token_loss import TokenLoss, linear_token_loss

__version__ = "0.1.0"

__all__ = [
    "TargetStatistics",
    "TokenLoss",
    "TopK",
    "build_info",
    "cer_reward",
    "linear_logprobs_and_entropy",
    "linear_target_statistics",
    "linear_token_loss",
    "linear_topk_logprobs",
    "logprobs_and_entropy",
    "reference",
    "target_statistics",
    "teca",
    "teca_last",
]
