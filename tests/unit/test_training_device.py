"""Training on a device that is not the CPU: one step of every architecture on torch's `meta` device, without a GPU.

    .venv/bin/python -m pytest tests/unit/test_training_device.py

`HostWatch` fails where an operation touches a tensor of the CPU, even where torch would let it pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from attune_training.augmentation import WaveformAugmentation, mask_spectrogram
from attune_training.config import TABLE_2_LORA, ArchitectureName, architecture_configs, tiny_config
from attune_training.data.batches import Batch, Collator, Example, TextTokens
from attune_training.fitting.module import RegressionModule
from attune_training.fitting.settings import Optimisation, Recipe, SpectrogramMasking
from attune_training.models.building import build_model
from attune_training.models.checkpoints import trained_parameters
from attune_training.models.unimodal import GruLayers
from tests.host_watch import META, HostWatch

LENGTHS = [6000, 4321, 900]
CONFIGS = {
    f"{name}-{config.target}-{kind}": config
    for kind in ("whisper", "hubert")
    for name in get_args(ArchitectureName)
    for config in architecture_configs(name, tiny_config("valence", kind))
} | {f"adapters-r{lora.rank}": replace(tiny_config("valence_arousal_dominance"), lora=lora) for lora in TABLE_2_LORA}
RECIPE = Recipe(corpora={}, optimisation=Optimisation(categories=0.5, epochs=1))


def batch_of(config, device) -> Batch:
    """Three examples, changed at random as training changes them: two with a voice, one with words alone."""
    random = np.random.default_rng(0)
    always = WaveformAugmentation(noise_probability=1.0, speed_probability=1.0, gain_probability=1.0)
    voices = [0.1 * random.standard_normal(size).astype(np.float32) for size in LENGTHS]
    examples = [
        Example(
            np.zeros(size, np.int16) if index else None, "a word", np.full(3, 2.0 + index, np.float32), 1.0, index - 1
        )
        for index, size in enumerate(LENGTHS)
    ]
    collate = Collator(TextTokens.of_letters(), config.target, 0.375)
    batch = collate(examples, [always.apply(voice, random) for voice in voices])
    return Batch(*(tensor.to(device) for tensor in batch))


def module_of(config, recipe=RECIPE):
    module = RegressionModule(build_model(config, None), recipe, ["mini"], 3, 4)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module.train()


@pytest.fixture
def known_lengths(monkeypatch):
    """A GRU packs by lengths on the host, the one thing that a step fetches: `meta` has no values to fetch."""
    monkeypatch.setattr(GruLayers, "lengths", staticmethod(lambda mask: torch.full((len(mask),), mask.shape[1])))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_step_of_training_touches_nothing_of_the_host(config, known_lengths):
    module, batch = module_of(config).to(META), batch_of(config, META)
    optimizer = torch.optim.AdamW(trained_parameters(module).values(), fused=False)
    # A GRU's lengths, and the optimiser's count of steps, which stays on the host unless it is fused.
    with HostWatch(dimensions=int("gru" in repr(module.model))) as watch:
        module.training_step(batch, 0).backward()
        torch.nn.utils.clip_grad_norm_(trained_parameters(module).values(), 1.0)
        optimizer.step()
        module.on_train_batch_end(None, batch, 0)
    assert watch.seen > 100
    assert all(value.grad is not None for value in trained_parameters(module).values())
    assert {tensor.device for tensor in module._average.values()} == {META}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_validation_touches_nothing_of_the_host(config, known_lengths):
    module, batch = module_of(config).eval().to(META), batch_of(config, META)
    with torch.no_grad(), HostWatch(dimensions=int("gru" in repr(module.model))):
        predicted = module.model(*batch[:5])
    assert (predicted.device, predicted.shape) == (META, (3, len(config.output_names)))


def test_masks_are_drawn_on_the_device_of_what_they_mask():
    with HostWatch():
        masked = mask_spectrogram(torch.ones(4, 80, 100, device=META))
    assert masked.device == META


def test_masks_are_those_of_before_on_the_cpu():
    torch.manual_seed(3)
    masked = mask_spectrogram(torch.ones(2, 8, 30), share=0.5)
    assert masked.sum(dim=(1, 2)).tolist() == [115.0, 81.0]


def test_averages_of_a_resumed_run_follow_the_model_to_its_device():
    """A checkpoint is read onto the CPU; the model has moved by the time that the first step wants to average."""
    config = next(iter(CONFIGS.values()))
    module = module_of(config)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_train_batch_end(None, None, 0)
    module.on_save_checkpoint(checkpoint)
    resumed = module_of(config)
    resumed.on_load_checkpoint(checkpoint)
    resumed.to(META)
    resumed.on_fit_start()
    with HostWatch():
        resumed.on_train_batch_end(None, None, 1)
    assert {tensor.device for tensor in resumed._average.values()} == {META}


@pytest.mark.parametrize("known", [[True, False, True], [False, False, False]])
def test_the_loss_of_categories_counts_those_that_are_known(known):
    config = tiny_config("valence_arousal_dominance")
    module, batch = module_of(config), batch_of(config, "cpu")
    module.eval()
    batch = batch._replace(category=torch.tensor([2 if row else -1 for row in known]), audio_present=torch.ones(3))
    voice = torch.randn(3, config.hidden_dim)
    loss = module.category_loss(voice, batch)
    rows = torch.tensor(known)
    expected = torch.nn.functional.cross_entropy(
        module.categories(voice[rows]).detach(), batch.category[rows], label_smoothing=0.1
    )
    assert float(loss.detach()) == pytest.approx(float(expected) if any(known) else 0.0, abs=1e-6)


def test_light_masking_is_what_the_recipe_says():
    assert SpectrogramMasking() == RECIPE.augmentation.masking
