"""What Freedoom-LT has for classes, and the text of its card, for `make_freedoom_lt.py`."""

# Class name, after what Freedoom draws: engine names. Kinds that look alike but for their colour or pose are one class.
# What is not listed is ignored: the spectre, because it is drawn as a faint shimmer.
# fmt: off
OBJECTS = {
    "imp": "DoomImp", "zombieman": "Zombieman", "shotgun_guy": "ShotgunGuy", "chaingun_guy": "ChaingunGuy",
    "demon": "Demon", "lost_soul": "LostSoul", "cacodemon": "Cacodemon", "pain_elemental": "PainElemental",
    "hell_knight": "HellKnight", "baron_of_hell": "BaronOfHell", "revenant": "Revenant", "mancubus": "Fatso",
    "arachnotron": "Arachnotron", "archvile": "Archvile", "cyberdemon": "Cyberdemon",
    "spider_mastermind": "SpiderMastermind", "health_bonus": "HealthBonus", "armor_bonus": "ArmorBonus",
    "stimpack": "Stimpack", "medikit": "Medikit", "berserk_pack": "Berserk", "soulsphere": "Soulsphere",
    "megasphere": "Megasphere", "invulnerability_sphere": "InvulnerabilitySphere", "blur_sphere": "BlurSphere",
    "radiation_suit": "RadSuit", "computer_map": "Allmap", "light_goggles": "Infrared", "green_armor": "GreenArmor",
    "blue_armor": "BlueArmor", "backpack": "Backpack", "clip": "Clip", "clip_box": "ClipBox", "shells": "Shell",
    "shell_box": "ShellBox", "rocket": "RocketAmmo", "rocket_box": "RocketBox", "cell": "Cell",
    "cell_pack": "CellPack", "chainsaw": "Chainsaw", "shotgun": "Shotgun", "super_shotgun": "SuperShotgun",
    "chaingun": "Chaingun", "rocket_launcher": "RocketLauncher", "plasma_rifle": "PlasmaRifle", "bfg": "BFG9000",
    "keycard": "BlueCard RedCard YellowCard", "skull_key": "BlueSkull RedSkull YellowSkull",
    "barrel": "ExplosiveBarrel", "burning_barrel": "BurningBarrel", "floor_lamp": "Column",
    "tech_lamp": "TechLamp TechLamp2", "candle": "Candlestick", "candelabra": "Candelabra",
    "torch": "RedTorch GreenTorch BlueTorch", "short_torch": "ShortRedTorch ShortGreenTorch ShortBlueTorch",
    "tech_pillar": "TechPillar",
    "pillar": "ShortRedColumn ShortGreenColumn TallRedColumn TallGreenColumn HeartColumn SkullColumn",
    "leafy_tree": "Stalagtite", "tree_stump": "TorchTree", "big_tree": "BigTree", "evil_eye": "EvilEye",
    "floating_skull": "FloatingSkull", "head_candles": "HeadCandles", "impaled_head": "HeadOnAStick HeadsOnAStick",
    "impaled_body": "LiveStick DeadStick", "dead_marine": "DeadMarine",
    "gore": "GibbedMarine GibbedMarineExtra Gibs ColonGibs SmallBloodPool BrainStem",
    "dead_soldier": "DeadZombieMan DeadShotgunGuy", "dead_imp": "DeadDoomImp", "dead_demon": "DeadDemon",
    "dead_cacodemon": "DeadCacodemon",
    "hanging_body": "BloodyTwitch NonsolidTwitch Meat2 Meat3 Meat4 Meat5 NonsolidMeat2 NonsolidMeat3 NonsolidMeat4 "
    "NonsolidMeat5 HangNoGuts HangBNoBrain HangTLookingDown HangTSkull HangTLookingUp HangTNoBrain",
}
# fmt: on
KINDS = {name: kind for kind, names in OBJECTS.items() for name in names.split()}
KIND_NAMES = ["wall", "floor_ceiling", *OBJECTS]
KIND_IDS = {name: KIND_NAMES.index(kind) for name, kind in KINDS.items()}

CARD = """\
# Written by tools/make_freedoom_lt.py. Comments: share of the labelled training pixels, frames of train + val.
name: freedoom_lt
title: Freedoom-LT
ignore_index: 255
mask_encoding: gray
unmapped: error
ignore_ids: [255]
classes:
{classes}
splits:
  train: {{images: "images/train/*.jpg", masks: "masks/train/{{stem}}.png"}}
  val: {{images: "images/val/*.jpg", masks: "masks/val/{{stem}}.png"}}
# By share of the labelled training pixels: head above 1 %, tail below 0.1 %.
groups:
{groups}
citation: >-
  Rendered with ViZDoom (M. Wydmuch, M. Kempka, W. Jaśkowski: ViZDoom Competitions: Playing Doom from Pixels, IEEE
  Transactions on Games 11(3), 2019) from Freedoom 0.13.0 (https://freedoom.github.io), by the contributors to the
  Freedoom project.
licence: BSD-3-Clause (Freedoom; see LICENSE beside the images)
source: >-
  Part of this package. Made by tools/make_freedoom_lt.py from the game files that the PyPI package vizdoom carries.
"""
