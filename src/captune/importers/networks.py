"""What sd-scripts' network options mean here: the kind of adapter, its ranks, and the rates it is trained at."""

from __future__ import annotations

from captune.importers import Translation
from captune.importers.settings import NEVER_GIVEN, Setting, Settings, off, pairs

PLAIN = ("networks.lora", "networks.lora_flux", "networks.lora_fa")
KINDS = {"locon": "lora", "lora": "lora", "loha": "loha", "lokr": "lokr"}
WIDE = r"\.conv[12]?$"  # the 3x3 convolutions of blocks, of down- and of upsamplers
RATE = 2e-6  # sd-scripts' own learning rate


def network(found: Translation, settings: Settings, family: str) -> None:
    """network_module, network_dim, network_alpha and network_args."""
    arguments = pairs(settings.pop("network_args", Setting([], NEVER_GIVEN)))
    _kind(found, settings, arguments)
    for name, place, default in (("network_dim", "train.rank", 4), ("network_alpha", "train.alpha", 1)):
        given = settings.pop(name, None)
        if given is None or off(given.value):
            found.put(f"{name} not given", place, default, "sd-scripts' own default")
        elif name == "network_alpha" and float(given.value) == 0:
            found.put(given.said, place, float(found.values["train"]["rank"]), "0 means alpha = rank there")
        else:
            number = int(given.value) if name == "network_dim" else float(given.value)
            found.put(given.said, place, number)
    _targets(found, arguments, family)
    if "dropout" in arguments:
        settings.setdefault("network_dropout", arguments.pop("dropout"))
    for setting in arguments.values():
        found.missing.append(f"{setting.said}: has no counterpart here")


def _kind(found: Translation, settings: Settings, arguments: Settings) -> None:
    module = settings.pop("network_module", Setting(PLAIN[0], NEVER_GIVEN))
    kind, word = "lora", str(module.value)
    if word.startswith("lycoris"):
        algorithm = arguments.pop("algo", Setting("lora", NEVER_GIVEN))
        kind = KINDS.get(str(algorithm.value).lower(), "")
        if not kind:
            found.missing.append(f"{algorithm.said}: there is LoRA, DoRA, LoHa and LoKr here; a plain LoRA is set")
            kind = "lora"
        if str(arguments.pop("dora_wd", Setting("", "")).value).lower() == "true":
            kind = "dora"
    elif word not in PLAIN:
        found.missing.append(f"{module.said}: networks of this kind are not trained here; a plain LoRA is set")
    if module.said != NEVER_GIVEN or kind != "lora":
        found.put(module.said, "train.kind", kind)


def _targets(found: Translation, arguments: Settings, family: str) -> None:
    """The modules, 3x3 convolutions with a rank of their own among them."""
    dim, alpha = arguments.pop("conv_dim", None), arguments.pop("conv_alpha", None)
    if family == "flux" or dim is None:
        for given in (dim, alpha):
            if given is not None:
                reason = "FLUX has no convolutions" if family == "flux" else "nothing reads it without conv_dim"
                found.ignored_there.append(f"{given.said}: {reason}")
        found.put("the modules that sd-scripts trains", "train.targets", "attention+feed_forward")
        return
    said = ", ".join(setting.said for setting in (dim, alpha) if setting is not None)
    found.put(said, "train.targets", "all")
    train = found.values["train"]
    if int(dim.value) != train["rank"]:
        found.put(dim.said, "train.ranks", {WIDE: int(dim.value)})
    there, here = float(alpha.value if alpha else 1) / int(dim.value), float(train["alpha"]) / train["rank"]
    if there != here:
        found.missing.append(
            f"{alpha.said if alpha else 'conv_alpha not given, 1 there'}: convolutions are scaled by {there:g} there; "
            f"alpha / rank is the same for all modules here, {here:g}"
        )


def learning_rates(found: Translation, settings: Settings) -> None:
    """learning_rate and the more particular rates above it."""
    common = settings.pop("learning_rate", Setting(RATE, "learning_rate not given"))
    given = common.said != "learning_rate not given"
    unet = settings.pop("unet_lr", None)
    if unet is not None and not off(unet.value):
        found.put(unet.said, "train.learning_rate", float(unet.value))
        if given:
            found.translated.append(f"{common.said} -> nothing to set: the more particular rates stand above it")
    else:
        found.put(common.said, "train.learning_rate", float(common.value), "" if given else "sd-scripts' own default")
    denoiser_only = settings.pop("network_train_unet_only", Setting(False, ""))
    text = settings.pop("text_encoder_lr", None)
    if denoiser_only.value:
        found.translated.append(
            f"{denoiser_only.said} -> nothing to set: text encoders are trained only when asked for"
        )
        if text is not None and not off(text.value):
            found.ignored_there.append(f"{text.said}: no text encoder is trained with network_train_unet_only")
        return
    if text is None:
        found.put(
            "text_encoder_lr not given", "train.text_encoder_learning_rate", float(common.value), "they are trained too"
        )
        return
    rates = [float(rate or 0) for rate in (text.value if isinstance(text.value, list) else [text.value])]
    if not any(rates):
        found.translated.append(f"{text.said} -> nothing to set: the text encoders stay as they are")
        return
    found.put(text.said, "train.text_encoder_learning_rate", max(rates))
    if len(set(rates)) > 1:
        found.missing.append(f"{text.said}: all text encoders have one learning rate here; the largest is set")
