"""Swin Transformer (arXiv:2103.14030) without copies of windows and without work for dropped paths."""

from typing import Any, List, Optional, Tuple

import torch
import torch.utils.checkpoint as cp
from mmcv.cnn.bricks.drop import DropPath
from mmcv.cnn.bricks.transformer import FFN
from mmseg.models.backbones.swin import ShiftWindowMSA, SwinBlock, SwinBlockSequence, SwinTransformer, WindowMSA
from torch import Tensor, nn

from recipe.models.execution import device_kind, is_compiling, is_plain
from recipe.models.feed_forward import FastFFN, feed_forward, is_layer_norm, two_layers
from recipe.models.half_parameters import half_type, in_dtype, linear_parameters, parameters_cast
from recipe.models.onednn_linear import takes_onednn
from recipe.models.residual_branch import add_branch, drawn_for, drops_paths, has_drawn, paths_drawn
from recipe.models.swin_branches import AddBranch, AttentionBranch, Branch, MLPBranch
from recipe.models.window_attention import window_attention
from recipe.models.window_attention_cpu import CPUWindowMSA, Windows, fits_cpu_window_msa
from recipe.models.window_attention_eval import window_msa_without_gradients
from recipe.models.window_maps import window_maps


class FastWindowMSA(WindowMSA):
    """mmseg's window attention; it can also take a whole feature map."""

    def set_up(self) -> None:
        """Store the relative position index as one row, (N * N, ). It is not part of checkpoints."""
        self.register_buffer('position_index', self.relative_position_index.view(-1), persistent=False)

    def attend(
        self, x: Tensor, hw_shape: Tuple[int, int], window_size: int, shift_size: int, norm: Optional[nn.Module] = None
    ) -> Tensor:
        """Attend in the (shifted) windows of a feature map, without dropout.

        Args:
            x: Tokens of the map, shape (B, H * W, C).
            hw_shape: H and W.
            window_size: Height and width of a window.
            shift_size: Cyclic shift of the windows.
            norm: Norm before the attention, or None.

        Returns:
            Shape (B, H * W, C).
        """
        index = self.position_index
        if not is_compiling() and fits_cpu_window_msa(x, self.qkv, self.proj, norm):
            windows = Windows((hw_shape[0], hw_shape[1]), window_size, shift_size)
            if takes_onednn(x, self.training):
                bias = self.position_bias(window_size)
                return window_msa_without_gradients(x, self.qkv, self.proj, bias, windows, self.scale, norm)
            return CPUWindowMSA.apply(
                x,
                self.qkv.weight,
                self.qkv.bias,
                self.relative_position_bias_table,
                index,
                self.proj.weight,
                self.proj.bias,
                windows,
                self.scale,
                *((None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)),
            )
        if norm is not None:
            x = norm(x)
        bias = self.position_bias(window_size)
        x = window_attention(self.qkv(x), self.qkv.bias, bias, hw_shape, window_size, shift_size, self.scale)
        return self.proj(x)

    def position_bias(self, window_size: int) -> Tensor:
        """Return the bias of each pair of positions, (num_heads, N, N), where N is ``window_size ** 2``."""
        N = window_size**2
        # The backward pass of this gather adds rows.
        return self.relative_position_bias_table.t().index_select(1, self.position_index).view(-1, N, N)


class FastShiftWindowMSA(ShiftWindowMSA):
    """mmseg's shifted window attention, without copies of windows."""

    def forward(self, query: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
        """Compute the same as upstream's method.

        Args:
            query: Shape (B, H * W, C).
            hw_shape: H and W.

        Returns:
            Shape (B, H * W, C).
        """
        if not self.attends_to_maps:
            return super().forward(query, hw_shape)
        return self.drop(self.attend(query, hw_shape))

    def attend(self, query: Tensor, hw_shape: Tuple[int, int], norm: Optional[nn.Module] = None) -> Tensor:
        """Compute the attention without DropPath. ``attends_to_maps`` has to hold.

        Args:
            query: Shape (B, H * W, C).
            hw_shape: H and W.
            norm: Norm before the attention, or None.

        Returns:
            Shape (B, H * W, C).
        """
        assert query.shape[1] == hw_shape[0] * hw_shape[1], 'input feature has wrong size'
        return self.w_msa.attend(query, hw_shape, self.window_size, self.shift_size, norm)

    @property
    def attends_to_maps(self) -> bool:
        """Whether the window attention is the accelerated one, has no hooks and draws no random numbers."""
        msa = self.w_msa
        draws = self.training and (msa.attn_drop.p > 0 or msa.proj_drop.p > 0)
        return type(msa) is FastWindowMSA and is_plain(msa) and not draws


# Result of a branch that is not added yet, (B * L, C), and its factors (B, 1, 1), or None; and a sum without it.
Last = Tuple[Tensor, Optional[Tensor]]
Unsummed = Tuple[Tensor, Optional[Last]]


def sum_of(unsummed: Unsummed) -> Tensor:
    """Add what is not added yet."""
    x, last = unsummed
    return x if last is None else AddBranch.apply(x, *last)


class FastSwinBlock(SwinBlock):
    """mmseg's Swin block; it does not compute a branch for samples that drop it."""

    def set_up(self) -> None:
        """Store whether the feed-forward network has dropout."""
        drops = (layer for layer in self.ffn.layers.modules() if isinstance(layer, nn.Dropout))
        self.ffn_drops = any(drop.p > 0 for drop in drops)

    def forward(self, x: Tensor, hw_shape: Tuple[int, int]) -> Tensor:
        """Compute the same as upstream's method.

        Args:
            x: Shape (B, H * W, C).
            hw_shape: H and W.

        Returns:
            Shape (B, H * W, C).
        """
        if self.runs_as_branches(x):
            return sum_of(self.run_branches(x, hw_shape))
        if not self.splits_branches:
            return super().forward(x, hw_shape)

        def run(x: Tensor) -> Tensor:
            x = add_branch(x, lambda y: self.attn.attend(y, hw_shape, self.norm1), self.attn.drop)
            return add_branch(x, self._feed_forward, self.ffn.dropout_layer)

        return cp.checkpoint(run, x) if self.with_cp and x.requires_grad else run(x)

    def runs_as_branches(self, x: Tensor) -> bool:
        """Whether the functions of ``swin_branches`` compute the same: on an accelerator, for the usual block."""
        if (
            device_kind(x.device) == 'cpu'
            or not torch.is_grad_enabled()
            or is_compiling()
            or self.with_cp
            or not self.splits_branches
        ):
            return False
        msa, drops = self.attn.w_msa, (self.attn.drop, self.ffn.dropout_layer)
        layers = two_layers(self.ffn.layers)
        return (
            x.dtype in (msa.qkv.weight.dtype, half_type(x.device))
            and all(type(layer) is nn.Linear and is_plain(layer) for layer in (msa.qkv, msa.proj))
            and msa.qkv.bias is not None
            and layers is not None
            and layers[2]
            and all(is_layer_norm(norm, x) for norm in (self.norm1, self.norm2))
            and type(self.ffn.gamma2) is nn.Identity
            and all(type(drop) in (DropPath, nn.Identity) for drop in drops)
            and all(has_drawn(drop) or not drops_paths(drop) for drop in drops)
        )

    def run_branches(self, x: Tensor, hw_shape: Tuple[int, int], last: Optional[Last] = None) -> Unsummed:
        """Run both branches as one function each. ``runs_as_branches`` has to hold.

        Args:
            x: Shape (B, H * W, C).
            hw_shape: H and W.
            last: Added to ``x`` first.

        Returns:
            A sum of that shape, and what has to be added to it: the result of the MLP.
        """
        msa, norm1, norm2 = self.attn.w_msa, self.norm1, self.norm2
        # Under autocast the tokens come in half precision from the merging of patches. Their sums stay in float32.
        x = x.to(msa.qkv.weight.dtype)
        dtype = half_type(x.device) or x.dtype
        maps = window_maps((int(hw_shape[0]), int(hw_shape[1])), self.attn.window_size, self.attn.shift_size, x.device)
        x, attended = AttentionBranch.apply(
            x,
            *(last or (None, None)),
            norm1.weight,
            norm1.bias,
            *(in_dtype(one, dtype) for one in (msa.qkv.weight, msa.qkv.bias)),
            msa.position_bias(self.attn.window_size),
            *(in_dtype(one, dtype) for one in (msa.proj.weight, msa.proj.bias)),
            Branch(norm1.eps, maps, msa.scale, dtype),
        )
        layers = two_layers(self.ffn.layers)
        assert layers is not None, 'checked before'
        first, second, _ = layers
        x, result = MLPBranch.apply(
            x,
            attended,
            drawn_for(self.attn.drop),
            norm2.weight,
            norm2.bias,
            *(in_dtype(one, dtype) for one in (first.weight, first.bias, second.weight, second.bias)),
            Branch(norm2.eps, None, 1.0, dtype),
        )
        return x, (result, drawn_for(self.ffn.dropout_layer))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.ffn.gamma2(feed_forward(self.ffn.layers, x, self.norm2))

    @property
    def splits_branches(self) -> bool:
        """Whether both branches are of the known kinds, and only DropPath draws random numbers."""
        return (
            type(self.attn) is FastShiftWindowMSA
            and self.attn.attends_to_maps
            and type(self.ffn) in (FFN, FastFFN)
            and not (self.training and self.ffn_drops)
            and all(map(is_plain, (self.attn, self.ffn)))
        )


class FastSwinBlockSequence(SwinBlockSequence):
    """mmseg's stage; a block leaves its last sum to the norm of the next one, since one kernel computes both."""

    def forward(self, x: Tensor, hw_shape: Tuple[int, int]) -> Tuple[Tensor, Any, Tensor, Any]:
        """Compute the same as upstream's method.

        Args:
            x: Shape (B, H * W, C).
            hw_shape: H and W.

        Returns:
            Tokens after the merging of patches, if there is any, with their H and W; and those before it, with theirs.
        """
        unsummed: Unsummed = (x, None)
        for block in self.blocks:
            if type(block) is FastSwinBlock and is_plain(block) and block.runs_as_branches(unsummed[0]):
                unsummed = block.run_branches(unsummed[0], hw_shape, unsummed[1])
            else:
                unsummed = block(sum_of(unsummed), hw_shape), None
        x = sum_of(unsummed)
        down = self.downsample(x, hw_shape) if self.downsample else (x, hw_shape)
        return (*down, x, hw_shape)


class FastSwinTransformer(SwinTransformer):
    """mmseg's Swin Transformer; it draws for all its DropPaths at once."""

    def forward(self, x: Tensor) -> List[Tensor]:
        """Return the features of the stages in ``out_indices``.

        Args:
            x: Images, shape (B, 3, H, W).

        Returns:
            For each of these stages (B, C, h, w).
        """
        if is_compiling():  # the compiler fuses the casts
            with paths_drawn(self._drop_paths(), x):
                return super().forward(x)
        with paths_drawn(self._drop_paths(), x), parameters_cast(self._groups(), half_type(x.device)):
            return self._channels_last(x) if takes_onednn(x, self.training) else super().forward(x)

    def _channels_last(self, x: Tensor) -> List[Tensor]:
        """Compute what upstream's method does, without its copy of each feature map to channels first."""
        x, hw_shape = self.patch_embed(x)
        x = self.drop_after_pos(x + self.absolute_pos_embed if self.use_abs_pos_embed else x)
        outs = []
        for i, stage in enumerate(self.stages):
            x, hw_shape, out, (height, width) = stage(x, hw_shape)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(out)
                outs.append(out.view(-1, height, width, self.num_features[i]).permute(0, 3, 1, 2))
        return outs

    def _groups(self) -> List[List[nn.Parameter]]:
        """Parameters of the linear layers in blocks, at most six blocks a group."""
        blocks = [list(stage.blocks[i : i + 6]) for stage in self.stages for i in range(0, len(stage.blocks), 6)]
        return [[one for block in group for one in linear_parameters(block)] for group in blocks]

    def _drop_paths(self) -> List[nn.Module]:
        """Return the DropPaths in the order of their use; [] if the order is not known."""
        blocks = [block for stage in self.stages for block in stage.blocks]
        if any(type(block) is not FastSwinBlock or block.with_cp or not block.splits_branches for block in blocks):
            return []
        return [drop for block in blocks for drop in (block.attn.drop, block.ffn.dropout_layer)]
