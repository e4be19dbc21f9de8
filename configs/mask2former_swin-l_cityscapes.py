# Mask2Former with Swin-L (ImageNet-22k, 384) on Cityscapes, crops of 512 x 1024, 8 cards x 2 images, 90 000 iterations.
# Published for this recipe: 83.65 mIoU on 8 A100 (mmsegmentation's model zoo). Not measured here.
_base_ = ['../mmsegmentation/configs/mask2former/mask2former_swin-l-in22k-384x384-pre_8xb2-90k_cityscapes-512x1024.py']

optim_wrapper = dict(optimizer=dict(type='DeviceAdamW'))  # the fused step of the device, as for Swin-B
# Keeps the last three checkpoints, and the best one.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
