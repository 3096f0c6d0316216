#!/bin/sh
# transformers 5.24.0: no forward pass of Llama4ForConditionalGeneration succeeds.
#
# Its forward calls `language_model`, which is a whole Llama4ForCausalLM, and then reads `outputs.image_outputs`, an
# attribute that the causal model's output class (MoeCausalLMOutputWithPast) does not have. A pass on token ids alone
# ends in an AttributeError, with return_dict=False too, while the causal model inside runs. Whoever loads a Llama 4
# checkpoint by its multimodal class therefore has to take `model.language_model`.
#
# Output seen:
#   whole model: AttributeError: 'MoeCausalLMOutputWithPast' object has no attribute 'image_outputs'
#   causal model inside: logits (1, 6, 96)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cat > "$folder/run.py" <<'PYTHON'
import torch
from transformers import Llama4Config, Llama4ForConditionalGeneration

text = dict(vocab_size=96, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48, num_hidden_layers=2)
text |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2)
text |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
vision = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=28)
vision |= dict(patch_size=14, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32)
model = Llama4ForConditionalGeneration(Llama4Config(text_config=text, vision_config=vision)).eval()
tokens = torch.arange(5, 11)[None]
try:
    with torch.no_grad():
        model(input_ids=tokens)
except AttributeError as error:
    assert "image_outputs" in str(error), error
    print(f"whole model: AttributeError: {error}")
else:
    raise SystemExit("the whole model runs: the behaviour has changed")
with torch.no_grad():
    logits = model.language_model(input_ids=tokens).logits
print("causal model inside: logits", tuple(logits.shape))
PYTHON
"$folder/venv/bin/python" "$folder/run.py" 2> "$folder/log" || { cat "$folder/log" >&2; exit 1; }
