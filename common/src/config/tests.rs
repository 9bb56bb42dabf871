#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

const SMALL: &str = r#"
name = "small"
[model]
kind = "alexnet"
width = 0.125
[data]
kind = "synthetic"
classes = 4
train = 100
val = 20
image_size = 64
[train]
global_batch = 16
"#;

fn with(overrides: &[&str]) -> Result<Config, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
    Config::parse(SMALL, "small.toml", &overrides)
}

fn message(overrides: &[&str]) -> String {
    with(overrides).expect_err("should be refused").to_string()
}

#[test]
fn the_resolved_config_reads_back_as_itself() {
    let config = with(&[]).expect("valid");
    assert_eq!(Config::parse(&config.to_toml(), "again", &[]).expect("valid"), config);
    assert_eq!(config.train.shards, 8);
}

#[test]
fn overrides_take_toml_values_and_bare_words() {
    let config =
        with(&["train.lr=0.5", "train.optimizer=adamw", "data.augment=[\"flip\"]", "cluster.min_workers=3", "name=a b"]).expect("valid");
    assert_eq!((config.train.lr, config.train.optimizer), (0.5, OptimizerKind::Adamw));
    assert_eq!(config.data.pixels.augment, [Augment::Flip]);
    assert_eq!((config.cluster.min_workers, config.name.as_str()), (3, "a b"));
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    for (wrong, near) in [
        ("train.epoch=3", "`epochs`"),
        ("data.imagesize=64", "`image_size`"),
        ("cluster.min_worker=1", "`min_workers`"),
        ("train.optimizer=adamx", "`adam"),
    ] {
        let text = message(&[wrong]);
        assert!(text.contains("did you mean") && text.contains(near), "{wrong}: {text}");
    }
    assert!(message(&["model.widht=1"]).contains("`width`"));
}

#[test]
fn a_key_of_another_kind_of_data_is_refused() {
    let text = message(&["data.path=somewhere"]);
    assert!(text.contains("data.path") && text.contains("classes"), "{text}");
}

#[test]
fn what_cannot_work_is_refused_and_says_what_would() {
    assert!(message(&["train.global_batch=20"]).contains("the next one is 24"));
    assert!(message(&["cluster.min_workers=9"]).contains("train.shards = 8"));
    assert!(message(&["data.image_size=32"]).contains("at least 63"));
    assert!(message(&["train.lr=0"]).contains("train.lr"));
    assert!(message(&["train.lr=nan"]).contains("train.lr"));
    assert!(message(&["name=../x"]).contains("slash"));
    assert!(message(&["nonsense"]).contains("key=value"));
}

#[test]
fn identity_ignores_place_and_length_but_not_what_decides_the_weights() {
    let base = with(&[]).expect("valid").identity();
    assert_eq!(base, with(&["train.epochs=99", "cluster.min_workers=4", "train.threads=2"]).expect("valid").identity());
    for change in ["seed=2", "train.lr=0.5", "train.shards=4", "data.image_size=65", "cluster.wire=bf16"] {
        assert_ne!(base, with(&[change]).expect("valid").identity(), "{change}");
    }
}

#[test]
fn the_published_models_have_their_published_sizes() {
    let parameters =
        |preset: AlexnetPreset| ModelConfig::Alexnet(AlexnetConfig { preset, ..AlexnetConfig::default() }).parameters(224, 3, 1000);
    assert_eq!(parameters(AlexnetPreset::Torchvision), 61_100_840);
    assert_eq!(parameters(AlexnetPreset::Original), 62_378_344);
}
