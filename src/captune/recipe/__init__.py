"""The recipe: every setting of a run as TOML, one frozen model per section, a sentence under every field.

A recipe is read once and all its errors are told together. Imports no torch.
"""

from captune.recipe.arms import SET_BY_CAPTUNE as SET_BY_CAPTUNE
from captune.recipe.arms import TUNE_EPOCHS as TUNE_EPOCHS
from captune.recipe.arms import TUNE_STEPS as TUNE_STEPS
from captune.recipe.arms import ArmSection as ArmSection
from captune.recipe.arms import CaptionerSection as CaptionerSection
from captune.recipe.arms import LengthMatch as LengthMatch
from captune.recipe.arms import TextSection as TextSection
from captune.recipe.arms import TuneSection as TuneSection
from captune.recipe.pictures import BaseSection as BaseSection
from captune.recipe.pictures import DatasetSection as DatasetSection
from captune.recipe.pictures import PrepareSection as PrepareSection
from captune.recipe.reading import as_toml as as_toml
from captune.recipe.reading import from_values as from_values
from captune.recipe.reading import read as read
from captune.recipe.reading import read_tuning as read_tuning
from captune.recipe.reading import split_targets as split_targets
from captune.recipe.reading import tuning_from_values as tuning_from_values
from captune.recipe.reading import tuning_of as tuning_of
from captune.recipe.results import MEASURED as MEASURED
from captune.recipe.results import EvaluateSection as EvaluateSection
from captune.recipe.results import ExportSection as ExportSection
from captune.recipe.results import SampleSection as SampleSection
from captune.recipe.results import StudySection as StudySection
from captune.recipe.section import Section as Section
from captune.recipe.training import RegularizationSection as RegularizationSection
from captune.recipe.training import TrainSection as TrainSection
from captune.recipe.whole import Recipe as Recipe
from captune.recipe.whole import TuneRecipe as TuneRecipe
