"""Who writes the captions, and what is done to them: [[arm]] with its captioner, [tune]."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from captune.recipe.section import Name, Section
from captune.recipe.training import TrainSection

TUNE_EPOCHS = 5  # where the recipe names no length
TUNE_STEPS = 100  # or so many steps, where those are fewer: what 50 pictures need
TUNE_RATE, TUNE_RATE_OF_MINI = 1e-4, 1e-3
SET_BY_CAPTUNE = frozenset({"messages", "model", "n", "stream"})  # fields of a request to a server that captions


class CaptionerSection(Section):
    """Who writes an arm's captions."""

    name: str
    """blip (a BLIP model), blip2 (a BLIP-2 model), vlm (a chat model that sees pictures), openai_api (such a model behind an
    OpenAI-compatible server), tagger (an ONNX tagger), sidecar (text files beside the pictures), filename or constant."""
    model: str = "mini"
    """For blip: `mini` (embedded), a folder, or a hub name such as Salesforce/blip-image-captioning-large; for blip2 (such as
    Salesforce/blip2-opt-2.7b), vlm and tagger: a folder or a hub name; for openai_api: the server's name of the model."""
    adapter: Path | None = None
    """For blip, blip2 and vlm: the folder of a LoRA that `captune tune-captioner` trained on this model."""
    prompt: str = ""
    """For blip: how every caption begins, such as "a photography of"; for blip2: what it is asked to go on from; for vlm and
    openai_api: the instruction, in which {trigger_word}, {class_word}, {tags} and {file_name} are filled in. Not given: one
    plain description is asked for."""
    prompt_file: Path | None = None
    """For vlm and openai_api: a text file with the instruction."""
    batch_size: int = Field(8, ge=1)
    """Pictures captioned at a time, 32 if not given for the embedded BLIP, which is small; for openai_api: requests under way
    at most."""
    max_new_tokens: int = Field(40, ge=1)
    """Longest caption, in the captioner's own tokens; for vlm and openai_api 300 if not given."""
    beams: int = Field(1, ge=1)
    """Beam search width; 1 for greedy."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """For vlm: number format of the weights; auto: bf16 on CUDA, else fp32."""
    quantize: Literal["8bit", "4bit"] | None = None
    """For vlm: load the weights in 8 or 4 bits (on CUDA: `captune[bitsandbytes]`)."""
    base_url: str = "https://api.openai.com/v1"
    """For openai_api: where the server is, such as http://localhost:8000/v1 (vLLM), http://localhost:11434/v1 (Ollama) or
    http://localhost:1234/v1 (LM Studio)."""
    api_key_env: str | None = None
    """For openai_api: the environment variable that holds the key. Not given: OPENAI_API_KEY for api.openai.com, and none
    for any other server."""
    image_size: int = Field(1024, ge=16)
    """For openai_api: longest side in pixels of the pictures that are sent; smaller ones are sent as they are."""
    image_format: Literal["jpeg", "png"] = "jpeg"
    """For openai_api: how pictures are sent."""
    temperature: float = Field(0.0, ge=0)
    """For openai_api: how freely words are drawn; 0 takes the likeliest."""
    seed: int | None = None
    """For openai_api: sent along where given; few servers promise anything about it."""
    request: dict[str, JsonValue] = {}
    """For openai_api: more fields of a request, such as { top_p = 0.9 }; "" leaves a field out, as in
    { temperature = "", max_tokens = "", max_completion_tokens = 900 } for models that reason."""
    timeout: float = Field(120.0, gt=0)
    """For openai_api: seconds in which an answer must have come whole."""
    retries: int = Field(5, ge=0)
    """For openai_api: how often a request is sent again after an answer of 429 or 5xx, none, or none that can be read."""
    price_in: float = Field(0.0, ge=0)
    """For openai_api: price of a million tokens that are read (pictures too), in any currency."""
    price_out: float = Field(0.0, ge=0)
    """For openai_api: price of a million tokens that are written, in the same currency."""
    spending_limit: float | None = Field(None, gt=0)
    """For openai_api: the most that this arm's captions may cost, earlier runs included, in the currency of the prices."""
    threshold: float = Field(0.35, gt=0, lt=1)
    """For tagger: how sure it must be of a general tag."""
    character_threshold: float = Field(0.85, gt=0, lt=1)
    """For tagger: how sure it must be of a character's name."""
    underscores: bool = False
    """For tagger: keep the underscores in tags, which are spaces otherwise."""
    exclude_tags: list[str] = []
    """For tagger: tags that are left out."""
    first_tags: list[str] = []
    """For tagger: tags that stand in front where they are found, in this order; the others follow, the surest first."""
    text: str = ""
    """For constant: every picture's caption, in which {trigger_word} and {class_word} are filled in."""
    extension: str = ".txt"
    """For sidecar: the caption files' extension; for vlm and openai_api: that of the files that {tags} are read from."""
    folder: Path | None = None
    """For sidecar: where the caption files are, if not beside the pictures; for vlm and openai_api: where those of {tags}
    are."""
    trigger: Literal["prefix", "replace_class", "none"] = "prefix"
    """How the trigger word is put in where it is missing: in front ("word, caption"), in place of the class
    word, or not at all."""

    @model_validator(mode="before")
    @classmethod
    def _fit_to_the_model(cls, values: Any) -> Any:
        """Models that follow an instruction need more tokens than those that write one sentence; small ones larger batches."""
        if not isinstance(values, dict):
            return values
        if values.get("name") in ("vlm", "openai_api"):
            return {"max_new_tokens": 300, **values}
        if values.get("name") == "blip" and values.get("model", "mini") == "mini":
            return {"batch_size": 32, **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> CaptionerSection:
        problems = []
        if self.prompt and self.prompt_file is not None:
            problems.append("give prompt or prompt_file, not both")
        if self.spending_limit is not None and not (self.price_in or self.price_out):
            problems.append("spending_limit needs price_in and price_out: without them nothing is known to be spent")
        if "@" in self.base_url.partition("://")[2].partition("/")[0]:
            problems.append("base_url holds a name or password, which would stand in the run folder; use api_key_env")
        if "?" in self.base_url or "#" in self.base_url:
            problems.append(
                "base_url must end with its path: what stands behind ? or # is sent to no server; leave it out"
            )
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            problems.append(
                "api_key_env must be the name of an environment variable that holds the key, not the key itself"
            )
        problems += [f"request.{field} cannot be set" for field in sorted(SET_BY_CAPTUNE & self.request.keys())]
        if problems:
            raise ValueError("\n".join(problems))
        return self


class TuneSection(Section):
    """A LoRA for a captioner, trained on pictures that have captions already; judged on pictures kept apart."""

    captioner: CaptionerSection = CaptionerSection(name="blip")
    """Whom to tune (blip, blip2 or vlm), and how it decodes before and after; within an arm, the arm's own captioner."""
    path: Path | None = None
    """Folder of pictures with caption files beside them, or with a metadata.jsonl; give this or dataset."""
    extension: str = ".txt"
    """The caption files' extension."""
    dataset: str = ""
    """A data set by name, such as jxie/coco_captions, or a folder that the `datasets` library reads; it is streamed, and its
    pictures are kept on disk (`captune[datasets]`)."""
    config: str = ""
    """Which configuration of that data set; not given: its own default."""
    split: str = "train"
    """Which of that data set's splits the pictures are taken from; they are split again here."""
    count: int | None = Field(None, ge=1)
    """How many pictures are taken, from the beginning; of a data set by name no more than these are loaded."""
    image_column: str = ""
    """That data set's column of pictures; not given: the only one that holds pictures."""
    caption_column: str = ""
    """Its column of captions, a text or a list of texts; not given: caption, captions, text, sentences or answer."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the pictures that tells which epoch is best."""
    test: float = Field(0.1, ge=0, lt=1)
    """Share of the pictures that the captioner is judged on, before and after; near-duplicates stay on one side. With
    fewer than 6 such pictures nothing is claimed."""
    rank: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Share of the adapter's inputs that is zeroed while training."""
    targets: str | list[str] = "text"
    """`text` (the language model), `cross_attention` (where it looks at the picture; not in vlm), `vision`, `all_linear`, or
    patterns of whole module names; a plain name such as `query` may stand for all modules that end in it."""
    learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the LoRA. Not given: 1e-4, and 1e-3 for the embedded BLIP, which is small."""
    optimizer: str = "adamw"
    """As train.optimizer."""
    optimizer_options: dict[str, float | int | bool | str] = {}
    """As train.optimizer_options."""
    weight_decay: float = Field(0.01, ge=0)
    """A step takes learning rate x this from every weight."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate changes over the run."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the training pictures, one of its captions each time; give epochs or steps. Neither: 5 epochs, or 100
    steps where those are fewer."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps in all; give epochs or steps."""
    batch_size: int = Field(8, ge=1)
    """Pictures per forward pass."""
    gradient_accumulation: int = Field(1, ge=1)
    """Batches per optimizer step."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients longer than this are scaled down to it; 0 for never."""
    seed: int = Field(0, ge=0)
    """Every draw is keyed by it, the split of the pictures too: equal seeds give equal files."""
    gradient_checkpointing: bool = False
    """Trade speed for memory: activations are computed again in the backward pass; same losses."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the frozen weights; auto: bf16 on CUDA, else fp32. The LoRA is always fp32."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Load the frozen weights in 8 or 4 bits (on CUDA: `captune[bitsandbytes]`)."""
    device: str = "auto"
    """auto (CUDA, then Apple's MPS, then CPU), cpu, cuda, cuda:1, mps; within an arm, base.device."""
    watch: Literal["loss", "cider"] = "loss"
    """What tells the best epoch on the validation pictures: the loss of their captions, or CIDEr of what is generated."""
    stop_after: int | None = Field(None, ge=1)
    """Stop when that has not improved for so many epochs."""
    checkpoint_every_steps: int = Field(100, ge=1)
    """How often the whole state is saved, so that a killed run continues."""
    metrics: list[str] = ["bleu", "rouge_l", "cider", "length", "vocabulary", "endings", "repetition", "novelty"]
    """What the test captions are scored by, as in `captune score-captions`; cider, which decides, is needed."""
    samples: int = Field(2, ge=0)
    """How many pictures are captioned after every epoch, to see the training's progress."""
    merged: bool = False
    """Also write the whole model with the LoRA in it."""
    push: str = ""
    """A hub repository (owner/name) that the adapter is uploaded to; the token is taken from HF_TOKEN alone."""

    @model_validator(mode="after")
    def _fits_together(self) -> TuneSection:
        problems = []
        if (self.path is None) == (not self.dataset):
            problems.append("give path (a folder of pictures with captions) or dataset (a name), one of them")
        if self.epochs is not None and self.steps is not None:
            problems.append("give epochs or steps, not both")
        if self.validation + self.test >= 1:
            problems.append(f"validation = {self.validation} and test = {self.test} leave no pictures to train on")
        if not self.validation and (self.stop_after is not None or self.watch != "loss"):
            problems.append("stop_after and watch need validation pictures; set validation above 0")
        if "cider" not in self.metrics:
            problems.append("metrics: cider, which decides, is missing")
        if self.quantize and self.merged:
            problems.append("merged: a LoRA is not merged into quantized weights; leave one of merged, quantize out")
        apart = self.set_apart
        reader = "dataset" if self.path is not None else "path"
        unread = ("config", "split", "image_column", "caption_column") if self.path is not None else ("extension",)
        problems += [f"{name} is only read with {reader}" for name in unread if name in apart]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def rate(self) -> float:
        """The learning rate, as given or as fits the captioner."""
        return self.learning_rate or (TUNE_RATE_OF_MINI if self.captioner.model == "mini" else TUNE_RATE)

    @property
    def as_training(self) -> TrainSection:
        """What the optimizer and the learning rate's curve are made from."""
        names = ("rank", "alpha", "dropout", "optimizer", "optimizer_options", "weight_decay", "epochs", "steps")
        more = ("lr_scheduler", "lr_warmup_steps", "batch_size", "gradient_accumulation", "max_grad_norm", "seed")
        return TrainSection(**{name: getattr(self, name) for name in (*names, *more)}, learning_rate=self.rate)


class TextSection(Section):
    """What is done to an arm's captions after its captioner, in this order; doing it again changes nothing."""

    regex: dict[str, str] = {}
    """Regular expressions, and what is put in the place of their finds: { "colou?r" = "shade" }."""
    replace: dict[str, str] = {}
    """Words or phrases, in whatever case, and what is put in their place: { puppy = "dog" }; "" takes them out."""
    ban: list[str] = []
    """Phrases that are taken out, and lists of them by name: openers ("a close up of", "there is"), watermarks ("with a
    watermark in the corner"), hedges ("seems to be", "perhaps")."""
    case: Literal["keep", "lower"] = "keep"
    """Write everything but the trigger word in small letters, or leave it."""
    absorb: float | None = Field(None, gt=0, le=1)
    """Take out the words that stand in at least this share of the arm's captions, such as 0.6: the subject's own colours,
    parts and clothes, which are left to the trigger word. Class word, trigger word and function words stay."""
    no_repetition: bool = False
    """Take out words, phrases and parts between commas that are said again."""
    add_class_word: bool = False
    """Put the class word behind the trigger word in captions that lack it."""
    begins_with: str = ""
    """How every caption begins; {trigger_word} and {class_word} are filled in."""
    max_tokens: int | None = Field(None, ge=3)
    """Cut captions to so many of the base's own tokens, start and end included, never within a word."""

    @model_validator(mode="after")
    def _makes_sense(self) -> TextSection:
        problems = [*self._regex_problems(), *self._replace_problems()]
        problems += [f"ban[{i}] is empty" for i, phrase in enumerate(self.ban) if not phrase.strip()]
        for word in re.findall(r"{(\w*)}", self.begins_with):
            if word not in ("trigger_word", "class_word"):
                problems.append(f"begins_with: unknown {{{word}}} (known: {{trigger_word}}, {{class_word}})")
        if not self.set_apart:
            problems.append("names no rule; leave it out")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _regex_problems(self) -> list[str]:
        problems = []
        for pattern, put in self.regex.items():
            try:
                compiled = re.compile(pattern)
                compiled.sub(put, "")
            except (re.error, IndexError) as error:
                problems.append(f"regex: {pattern!r} = {put!r}: {error}")
                continue
            if compiled.search("") is not None:
                problems.append(f"regex: {pattern!r} finds the empty text, which stands everywhere")
        return problems

    def _replace_problems(self) -> list[str]:
        problems = []
        for find, put in self.replace.items():
            if not find.strip():
                problems.append("replace: an empty text stands everywhere; name a word")
            for other in self.replace:
                if other.strip() and re.search(rf"(?<!\w){re.escape(other)}(?!\w)", put, re.IGNORECASE):
                    problems.append(
                        f"replace: {put!r}, put in for {find!r}, holds {other!r} and would be replaced again"
                    )
        return problems

    def filled_start(self, trigger_word: str, class_word: str) -> str:
        """How captions begin, with its words filled in."""
        filled = self.begins_with.replace("{trigger_word}", trigger_word).replace("{class_word}", class_word)
        return " ".join(filled.split())


class LengthMatch(Section):
    """Another arm's captions, each cut to the length that a third arm's caption of the same picture has."""

    captions: Name
    """The arm whose captions are cut."""
    lengths: Name
    """The arm whose lengths, in the base's own tokens, they are cut to."""


class ArmSection(Section):
    """One set of captions for the same pictures, and the LoRA trained on it."""

    name: Name
    """Short name of the arm, used in folders and in the report."""
    captioner: CaptionerSection | None = None
    """Who writes the captions: { name = "blip" } or { name = "sidecar" }."""
    tune: TuneSection | None = None
    """Train a LoRA for this captioner first, as [tune] says: { path = "my_captions", epochs = 5 }."""
    text: TextSection | None = None
    """Rules for the captions after the captioner: { absorb = 0.6, ban = ["openers"] }."""
    shuffled: Name | None = None
    """Instead of a captioner: this arm's captions dealt to the wrong pictures, a control that should do worse."""
    length_matched: LengthMatch | None = None
    """Instead of a captioner: { captions = "human", lengths = "blip" } takes human's captions, cut to blip's lengths."""
    trigger_only: bool = False
    """Instead of a captioner: nothing but the trigger word and the class word, the baseline that captions should beat."""
    train: dict[str, Any] = {}
    """Values of [train] that this arm has otherwise, such as { rank = 16 }; the report says so."""
    human_minutes: float | None = Field(None, ge=0)
    """How long a person wrote these captions, for the report's table of efforts."""

    @model_validator(mode="after")
    def _one_source(self) -> ArmSection:
        sources = [self.captioner, self.shuffled, self.length_matched, self.trigger_only or None]
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                'give one of captioner (such as { name = "blip" }), shuffled, length_matched, trigger_only'
            )
        if self.tune is not None:
            if self.captioner is None:
                raise ValueError("tune needs a captioner that is tuned")
            if self.captioner.adapter is not None:
                raise ValueError("give captioner.adapter (tuned already) or tune, not both")
            for option in ("captioner", "device"):
                if option in self.tune.set_apart:
                    raise ValueError(f"tune.{option}: within an arm this is the arm's captioner, on base.device")
        if self.text is not None and self.captioner is None:
            raise ValueError("text needs a captioner: captions made of another arm's follow the rules of that arm")
        return self

    @property
    def derived_from(self) -> list[str]:
        """The arms whose captions this one is made of."""
        if self.length_matched is not None:
            return [self.length_matched.captions, self.length_matched.lengths]
        return [self.shuffled] if self.shuffled is not None else []

    @property
    def source(self) -> str:
        """Who or what the captions come from, in a word or two."""
        if self.captioner is not None:
            return self.captioner.name
        if self.shuffled is not None:
            return f"shuffled {self.shuffled}"
        return " at the length of ".join(self.derived_from) if self.length_matched else "trigger word only"

    @field_validator("name")
    @classmethod
    def _not_base(cls, value: str) -> str:
        if value == "base":
            raise ValueError("is the name of the pictures made without a LoRA; choose another")
        if value == "real":
            raise ValueError("is the name of the training pictures in the scores; choose another")
        return value
