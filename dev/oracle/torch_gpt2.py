"""GPT-2 in PyTorch, as plain as possible: modules, autograd, torch.optim.AdamW. It shares only the tensor names with the package."""

import torch
from torch import nn
from torch.nn import functional as F

# Our tensors with one matrix or vector per block -> the module of a Block and its attribute.
PER_BLOCK = {
    "ln1w": ("ln1", "weight"),
    "ln1b": ("ln1", "bias"),
    "qkvw": ("qkv", "weight"),
    "qkvb": ("qkv", "bias"),
    "attprojw": ("attproj", "weight"),
    "attprojb": ("attproj", "bias"),
    "ln2w": ("ln2", "weight"),
    "ln2b": ("ln2", "bias"),
    "fcw": ("fc", "weight"),
    "fcb": ("fc", "bias"),
    "fcprojw": ("fcproj", "weight"),
    "fcprojb": ("fcproj", "bias"),
}


class Block(nn.Module):
    def __init__(self, C, NH):
        super().__init__()
        self.NH = NH
        self.ln1, self.ln2 = nn.LayerNorm(C, eps=1e-5), nn.LayerNorm(C, eps=1e-5)
        self.qkv, self.attproj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.NH, C // self.NH).transpose(1, 2) for part in self.qkv(self.ln1(x)).split(C, dim=2))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attproj(attended.transpose(1, 2).reshape(B, T, C))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class TorchGPT2(nn.Module):
    """GPT-2. L, NH, C, max_T and V are those of the package's GPT2Config.

    wte_rows        rows of wte, V or more; no token has those beyond V, and their logits are cut off. None: V
    residual_dtype  the type to which the sum of both embeddings is rounded and which, under autocast, the residual stream then keeps. None:
                    the type of the parameters
    """

    def __init__(self, L, NH, C, max_T, V, wte_rows=None, residual_dtype=None):
        super().__init__()
        self.V, self.residual_dtype = V, residual_dtype
        self.wte, self.wpe = nn.Embedding(wte_rows or V, C), nn.Embedding(max_T, C)
        self.blocks = nn.ModuleList(Block(C, NH) for _ in range(L))
        self.lnf = nn.LayerNorm(C, eps=1e-5)

    def residual_stream(self, tokens):
        """What leaves the last block, (B, T, C), for tokens (B, T)."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = x.to(self.residual_dtype or x.dtype)
        for block in self.blocks:
            x = block(x)
        return x

    def classify(self, x):
        """Logits (B, T, V) of what leaves the last block."""
        return F.linear(self.lnf(x), self.wte.weight)[..., : self.V]

    def cross_entropy(self, x, targets):
        """Mean cross-entropy of targets (B, T), a scalar tensor, from what leaves the last block."""
        return F.cross_entropy(self.classify(x).flatten(0, 1), targets.flatten())

    def logits(self, tokens):
        """Logits (B, T, V) of tokens (B, T)."""
        return self.classify(self.residual_stream(tokens))

    def forward(self, tokens, targets):
        """Mean cross-entropy of targets (B, T), a scalar tensor."""
        return self.cross_entropy(self.residual_stream(tokens), targets)

    def by_name(self):
        """Our tensor name -> the parameter, or the list of the parameters of all blocks."""
        tensors = {"wte": self.wte.weight, "wpe": self.wpe.weight, "lnfw": self.lnf.weight, "lnfb": self.lnf.bias}
        for name, (module, attribute) in PER_BLOCK.items():
            tensors[name] = [getattr(getattr(block, module), attribute) for block in self.blocks]
        return tensors

    def load(self, arrays):
        """Set all parameters from our 16 arrays; of wte as many rows as there are here."""
        blocks = [(name, layer, part) for name in PER_BLOCK for layer, part in enumerate(arrays[name])]
        self.load_pieces([*blocks, *((name, 0, arrays[name]) for name in arrays.keys() - PER_BLOCK.keys())])

    def load_pieces(self, pieces):
        """Set parameters from (name, layer, float array) triples, one for each of our tensors in each block, as GPT2.load_pieces does."""
        tensors = self.by_name()
        with torch.no_grad():
            for name, layer, values in pieces:
                target = tensors[name][layer] if name in PER_BLOCK else tensors[name]
                target.copy_(torch.from_numpy(values)[: len(target)])

    def to_numpy(self, select=lambda parameter: parameter):
        """Our 16 tensors as NumPy arrays: the parameters, or select(parameter) of each; wte without padding."""
        return {
            name: (torch.stack([select(t) for t in tensor]) if isinstance(tensor, list) else select(tensor)).detach().numpy().copy()
            for name, tensor in self.by_name().items()
        }

    def adamw(self, weight_decay):
        """AdamW with GPT-2's settings: weight decay for matrices, none for biases and LayerNorms."""
        matrices = [parameter for parameter in self.parameters() if parameter.ndim == 2]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim == 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
