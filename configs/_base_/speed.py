# Switches of how fast a training runs, at equal results; what each does: mtpd/engine/speed.py.
speed = dict(
    precision='auto',  # of training: bf16 where the device has it, else fp32; tf32: as torch has it on a GPU
    channels_last='auto',
    fold_teacher='auto',
    teacher_stream='auto',
    fold_student='auto',
    fused_convs='auto',
    fused_attention='auto',
    deform_kernels='auto',
    target_stream='auto',
    pin_memory='auto',
    byte_batches='auto',
    fused_optimizer='auto',
    keep_memory='auto',
)
