# The recipe in small: a Mask2Former-Swin of 6 M parameters on 128 x 256 street scenes, minutes on two CPU cores. Same
# model code, losses and hooks as the recipe; only sizes, schedule and learning rate differ. Trained from scratch.
_base_ = ['./mask2former_swin-b_cityscapes.py']

channels = 128
model = dict(
    backbone=dict(
        pretrain_img_size=224,
        embed_dims=48,
        depths=[2, 2, 2, 2],
        num_heads=[3, 6, 12, 24],
        window_size=4,
        drop_path_rate=0.0,
        init_cfg=None,
    ),
    decode_head=dict(
        in_channels=[48, 96, 192, 384],
        feat_channels=channels,
        out_channels=channels,
        num_queries=40,
        pixel_decoder=dict(
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=channels),
                    ffn_cfg=dict(embed_dims=channels, feedforward_channels=256),
                ),
            ),
            positional_encoding=dict(num_feats=channels // 2),
        ),
        positional_encoding=dict(num_feats=channels // 2),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=channels),
                cross_attn_cfg=dict(embed_dims=channels),
                ffn_cfg=dict(embed_dims=channels, feedforward_channels=512),
            ),
        ),
        train_cfg=dict(num_points=1024),
    ),
)

crop_size = (128, 256)
model['data_preprocessor'] = dict(size=crop_size)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    # No resizing, cropping or colour changes: in so few iterations they cost more mIoU than they bring.
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    # Trained from scratch, so the backbone learns at the full rate.
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0),
    clip_grad=dict(max_norm=1.0),
)
auto_scale_lr = dict(base_batch_size=4)  # 2 ranks x 2 images
randomness = dict(seed=0)
max_iters = 500
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, begin=0, end=20, by_epoch=False),
    dict(type='PolyLR', eta_min=0, power=0.9, begin=20, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=250)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=250),
    visualization=dict(draw=True, interval=2),
)
