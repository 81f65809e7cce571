# The pool's study on 2 CPU cores: three of the teachers, two seeds.
#
# Prerequisites: none. Two teachers are shipped, the Swin is trained here.
# Launch: mtpd sweep configs/mini/pool_reduced.py --orders "all;auto" --seeds 0-1 --slots 2 --cpus 1
# Expected: 25 minutes (results/mini_pool_reduced/).
_base_ = ['pool.py']
name = 'mini_pool_reduced'
title = 'A pool of three teachers for RetinaNet at pocket size on DigitScenes: a ResNet, a ResNeXt, a Swin'

teachers = dict(
    _delete_=True,
    r34={{_base_.teachers.r34}},
    x50={{_base_.teachers.x50}},
    swin={{_base_.teachers.swin}},
)
