"""Swin Transformer (arXiv:2103.14030) without copies of windows and without work for dropped paths."""

from typing import List, Optional, Tuple

import torch.utils.checkpoint as cp
from mmcv.cnn.bricks.transformer import FFN
from mmseg.models.backbones.swin import ShiftWindowMSA, SwinBlock, SwinTransformer, WindowMSA
from torch import Tensor, nn

from recipe.models.execution import is_compiling, is_plain
from recipe.models.feed_forward import FastFFN, feed_forward
from recipe.models.residual_branch import add_branch, paths_drawn
from recipe.models.window_attention import window_attention
from recipe.models.window_attention_cpu import CPUWindowMSA, Windows, fits_cpu_window_msa


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
            return CPUWindowMSA.apply(
                x,
                self.qkv.weight,
                self.qkv.bias,
                self.relative_position_bias_table,
                index,
                self.proj.weight,
                self.proj.bias,
                Windows((hw_shape[0], hw_shape[1]), window_size, shift_size),
                self.scale,
                *((None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)),
            )
        if norm is not None:
            x = norm(x)
        N = window_size**2
        # (num_heads, N, N). The backward pass of this gather adds rows.
        position_bias = self.relative_position_bias_table.t().index_select(1, index).view(-1, N, N)
        x = window_attention(self.qkv(x), self.qkv.bias, position_bias, hw_shape, window_size, shift_size, self.scale)
        return self.proj(x)


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
        if not self.splits_branches:
            return super().forward(x, hw_shape)

        def run(x: Tensor) -> Tensor:
            x = add_branch(x, lambda y: self.attn.attend(y, hw_shape, self.norm1), self.attn.drop)
            return add_branch(x, self._feed_forward, self.ffn.dropout_layer)

        return cp.checkpoint(run, x) if self.with_cp and x.requires_grad else run(x)

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


class FastSwinTransformer(SwinTransformer):
    """mmseg's Swin Transformer; it draws for all its DropPaths at once."""

    def forward(self, x: Tensor) -> List[Tensor]:
        """Return the features of the stages in ``out_indices``.

        Args:
            x: Images, shape (B, 3, H, W).

        Returns:
            For each of these stages (B, C, h, w).
        """
        with paths_drawn(self._drop_paths(), x):
            return super().forward(x)

    def _drop_paths(self) -> List[nn.Module]:
        """Return the DropPaths in the order of their use; [] if the order is not known."""
        blocks = [block for stage in self.stages for block in stage.blocks]
        if any(type(block) is not FastSwinBlock or block.with_cp or not block.splits_branches for block in blocks):
            return []
        return [drop for block in blocks for drop in (block.attn.drop, block.ffn.dropout_layer)]
