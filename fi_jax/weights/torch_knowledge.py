"""The knowledge modules of FaceInsight in PyTorch: `face_knowledge.py` of an exported folder. Needs torch alone.

Shapes: b faces, n labels, d0 and e widths of prompts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PromptGcn(nn.Module):
    """T_p^l = LeakyReLU(graph T_p^{l-1} W): label prompts refined by the co-occurrence graph."""

    def __init__(self, c: dict):
        super().__init__()
        self.enabled, self.depth, self.slope = c["enabled"], c["depth"], c["leaky_slope"]
        widths = [c["prompt_size"], *[c["hidden_size"]] * (c["depth"] - 1), c["align_size"]]
        for i in range(self.depth if self.enabled else 0):
            setattr(self, f"layer_{i}", nn.Linear(widths[i], widths[i + 1], bias=False))
        self.skip = c["residual"] or not c["enabled"]
        self.residual: nn.Module = nn.Identity()
        if self.skip and c["prompt_size"] != c["align_size"]:
            self.residual = nn.Linear(c["prompt_size"], c["align_size"], bias=False)

    def forward(self, prompts: Tensor, graph: Tensor) -> Tensor:
        """`[n, d0]`, `[n, n]` -> `[n, e]`."""
        if not self.enabled:
            return self.residual(prompts)
        x = prompts
        for i in range(self.depth):
            x = F.leaky_relu(graph @ getattr(self, f"layer_{i}")(x), self.slope)
        return x + self.residual(prompts) if self.skip else x


class AlignmentHead(nn.Module):
    """exp(t) · cos(f(image, map), prompt) + b: one logit a label."""

    def __init__(self, c: dict, image: int, segmentation: int):
        super().__init__()
        width = c["align_size"]
        self.image = nn.Linear(image, width, bias=False)
        self.segmentation = nn.Linear(segmentation, width, bias=False) if segmentation else None
        self.out = nn.Linear(width, width, bias=False)
        self.log_scale, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        if c.get("score_graph", "off") != "off":
            self.relations = ScoreGraph(width, c["score_rank"])

    def forward(self, image: Tensor, segmentation: Tensor | None, prompts: Tensor) -> Tensor:
        hidden = self.image(image)
        if self.segmentation is not None:
            hidden = hidden + self.segmentation(segmentation)
        f = self.out(F.gelu(hidden, approximate="tanh"))
        cosine = F.normalize(f, dim=-1, eps=1e-6) @ F.normalize(prompts, dim=-1, eps=1e-6).T
        return self.log_scale.exp() * cosine + self.bias


class ScoreGraph(nn.Module):
    """s + (q - prior) E: what the scores say of a face's labels moves the scores of the labels that go with them."""

    speak: nn.Linear
    hear: nn.Linear

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(()))
        self.has_rank = rank > 0
        for name in ("speak", "hear") if rank else ():
            self.add_module(name, nn.Linear(width, rank, bias=False))

    def forward(self, scores: Tensor, prompts: Tensor, lift: Tensor, prior: Tensor, groups: list[list[int]]) -> Tensor:
        """`[b, n]`, `[n, e]`, `[n, n]`, `[n]` -> `[b, n]`; the options of a choice do not speak to each other."""
        edges = self.strength * lift
        if self.has_rank:
            x = F.normalize(prompts, dim=-1, eps=1e-6)
            edges = edges + self.speak(x) @ self.hear(x).T
        apart = ~torch.eye(len(lift), dtype=torch.bool, device=lift.device)
        for group in groups:
            held = torch.zeros(len(lift), dtype=torch.bool, device=lift.device)
            held[group] = True
            apart &= ~(held[:, None] & held)
        return scores + (label_probabilities(scores, groups) - prior) @ (edges * apart)


def label_probabilities(scores: Tensor, groups: list[list[int]]) -> Tensor:
    """`[b, n]` scores: a sigmoid each; a softmax among the options of a choice, their mean for a label of two choices."""
    total, times = torch.zeros_like(scores), torch.zeros_like(scores)
    for group in groups:
        total[:, group] += torch.softmax(scores[:, group], -1)
        times[:, group] += 1
    return torch.where(times > 0, total / times.clamp(min=1), torch.sigmoid(scores))
