"""PyTorch checkpoints in and out, by name maps; torch itself is never imported.

layouts.py          how a tensor is called and laid out on either side
mapping.py          applies a list of such entries to a checkpoint, with a full account of its tensors
tensor_files.py     safetensors and torch's own files, one tensor at a time
torch_file.py       reads what `torch.save` wrote, tensors only
hf_clip.py, open_clip.py, diffusers_nets.py, karlo.py, ...    one file per origin: its configs and its names
adapter_files.py, adapters.py, ...      LoRA in all its dialects, the names of its layers, and what commands make of it
"""
