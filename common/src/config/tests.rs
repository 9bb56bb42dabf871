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
fn a_micro_batch_is_a_number_or_auto() {
    let micro = |set: &str| with(&[set]).map(|c| c.train.micro_batch);
    assert_eq!(micro("train.micro_batch=16").expect("valid"), Some(MicroBatch::Samples(16)));
    assert_eq!(micro("train.micro_batch=auto").expect("valid"), Some(MicroBatch::Auto(Auto::Auto)));
    for (set, words) in [
        ("train.micro_batch=0", "at least 1"),
        ("train.micro_batch=some", "a number of samples, or"),
        ("train.micro_batch=-1", "a number of samples, or"),
    ] {
        assert!(message(&[set]).contains(words), "{}", message(&[set]));
    }
    // A shard of 8 samples.
    let exact = |set| ["train.reproducible=true", set, "train.global_batch=64", "train.shards=8"];
    assert!(with(&exact("train.micro_batch=8")).is_ok());
    assert!(message(&exact("train.micro_batch=7")).contains("raise train.shards"));
    assert!(message(&exact("train.micro_batch=auto")).contains("raise train.shards"));
    let identity = |set| with(&[set]).expect("valid").identity();
    assert_eq!(identity("train.micro_batch=16"), identity("train.epochs=3"), "a run may go on with another one");
}

#[test]
fn the_resolved_config_reads_back_as_itself() {
    let config = with(&[]).expect("valid");
    assert_eq!(Config::parse(&config.to_toml(), "again", &[]).expect("valid"), config);
    assert_eq!((config.train.shards, config.cluster.balance), (8, Balance::Speed));
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
        ("cluster.balance=spede", "`speed`"),
    ] {
        let text = message(&[wrong]);
        assert!(text.contains("did you mean") && text.contains(near), "{wrong}: {text}");
    }
    assert!(message(&["model.widht=1"]).contains("`width`"));
}

#[test]
fn what_a_set_has_caused_is_blamed_on_it() {
    for (wrong, words) in [
        (&["train.lr=0,001"][..], "`--set train.lr=0,001`: invalid type"),
        (&["train.lr=0,001"], "decimal point: train.lr=0.001"),
        (&["seed=4", "train.lr=a", "name=b"], "`--set train.lr=a`"),
        (&["data.kind=csv"], "`--set data.kind=csv`: `data."),
        (&["data.kind=csv", "data.path=a", "data.lable=b"], "`--set data.lable=b`"),
        (&["name=123"], "needs quotes within quotes: --set 'name=\"123\"'"),
        (&["data={kind=\"csv\", path=\"a\"}", "model={kind=\"mlp\"}", "data.label=2020"], "--set 'data.label=\"2020\"'"),
        (&["data={kind=\"csv\", path=\"a\"}", "model={kind=\"mlp\"}", "data.path=123"], "--set 'data.path=\"123\"'"),
        (&["name=true"], "quotes within quotes: --set 'name=\"true\"'"),
    ] {
        let text = message(wrong);
        assert!(text.contains(words) && !text.contains("small.toml"), "{wrong:?}: {text}");
    }
    // A right `--set` beside a wrong file.
    let text = Config::parse(&SMALL.replace("classes = 4", "classes = 4.5"), "small.toml", &["seed=3".to_owned()]).expect_err("wrong");
    assert!(text.to_string().contains("`small.toml` is not a valid config"), "{text}");
    let text = Config::parse(&SMALL.replace("\"small\"", "5"), "small.toml", &[]).expect_err("wrong").to_string();
    assert!(text.contains("small.toml") && text.contains("in quotes"), "{text}");
}

#[test]
fn a_key_of_another_section_is_named_in_full() {
    for (wrong, right) in [
        ("lr=0.1", "did you mean `train.lr`?"),
        ("train.seed=3", "did you mean `seed`?"),
        ("kind=csv", "did you mean `model.kind` or `data.kind`?"),
        ("model.min_workers=2", "did you mean `cluster.min_workers`?"),
        ("train.hidden=[2]", "did you mean `model.hidden`?"),
        ("data.max_epochs=2", "did you mean `train.max_epochs`?"),
    ] {
        assert!(message(&[wrong]).ends_with(right), "{wrong}: {}", message(&[wrong]));
    }
    // Of another model, in the section where it stands already.
    assert!(!message(&["model.hidden=[2]"]).contains("did you mean"), "{}", message(&["model.hidden=[2]"]));
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
    assert_eq!(base, with(&["cluster.balance=equal"]).expect("valid").identity(), "who owns which shards changes no sample");
    let exact = |threads: &str| with(&["train.reproducible=true", threads]).expect("valid").identity();
    assert_ne!(exact("train.threads=1"), exact("train.threads=2"));
    for change in ["train.reproducible=true", "seed=2", "train.lr=0.5", "train.shards=4", "data.image_size=65", "cluster.wire=bf16"] {
        assert_ne!(base, with(&[change]).expect("valid").identity(), "{change}");
    }
}

#[test]
fn the_published_models_have_their_published_sizes() {
    let input = InputShape { channels: 3, image_size: 224, classes: 1000 };
    let parameters = |preset: AlexnetPreset| ModelConfig::Alexnet(AlexnetConfig { preset, ..AlexnetConfig::default() }).parameters(input);
    assert_eq!(parameters(AlexnetPreset::Torchvision), 61_100_840);
    assert_eq!(parameters(AlexnetPreset::Original), 62_378_344);
}

const POINTS: &str = "name = \"p\"\n[model]\nkind = \"mlp\"\n[data]\nkind = \"xor\"\n[train]\nglobal_batch = 4\nshards = 1\n";

fn points(overrides: &[&str]) -> Result<Config, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
    Config::parse(POINTS, "points.toml", &overrides)
}

#[test]
fn every_kind_of_data_and_model_reads_back_as_itself() {
    let perceptron = [
        "model.kind=perceptron",
        "train.lr=1.0",
        "train.momentum=0.0",
        "train.weight_decay=0.0",
        "train.schedule=constant",
        "train.global_batch=1",
    ];
    let none: Vec<&str> = Vec::new();
    let cases = [
        none.clone(),
        vec!["data.kind=separable", "data.margin=0.2"],
        vec!["data.kind=csv", "data.path=a.csv"],
        vec!["model.kind=softmax", "model.loss=margin"],
        perceptron.to_vec(),
        vec!["model.activation=tanh", "model.hidden=[3,2]"],
    ];
    for case in cases {
        let config = points(&case).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        assert_eq!(Config::parse(&config.to_toml(), "again", &[]).expect("valid"), config);
    }
}

#[test]
fn kinds_of_pictures_read_back_and_their_place_is_not_their_identity() {
    let shared = "data={kind=\"webdataset\", path=\"a\", val_path=\"b\"}";
    for (set, moved) in [
        ("data={kind=\"list\", path=\"a.csv\", root=\"r\", val_fraction=0.1}", "data={kind=\"list\", path=\"b.tsv\", val_fraction=0.1}"),
        (shared, "data={kind=\"webdataset\", path=\"c\", on_corrupt=\"skip\"}"),
        (
            "data={kind=\"parquet\", path=\"a\", val_path=\"b\", image=\"img\", label=\"fine\"}",
            "data={kind=\"parquet\", path=\"c\", image=\"img\", label=\"fine\"}",
        ),
        ("data={kind=\"ilsvrc\", path=\"a\"}", "data={kind=\"ilsvrc\", path=\"b\", on_corrupt=\"skip\"}"),
        ("data={kind=\"cifar\", path=\"a\"}", "data={kind=\"cifar\", path=\"b\"}"),
    ] {
        let config = with(&[set]).unwrap_or_else(|e| panic!("{set}: {e}"));
        assert_eq!(Config::parse(&config.to_toml(), "again", &[]).expect("valid"), config);
        assert_eq!(config.identity(), with(&[moved]).expect("valid").identity(), "{set}");
        assert_eq!(config.data.pixels.mean[0] > 0.0, !set.contains("cifar"), "{set}");
    }
    assert!(message(&[shared, "data.val_fraction=0.1"]).contains("leave one out"));
    assert!(message(&["data={kind=\"parquet\", path=\"a\", val_path=\"b\", val_fraction=0.1}"]).contains("leave one out"));
    assert!(message(&["data={kind=\"parquet\", path=\"a\", val_fraction=1.5}"]).contains("between 0 and 1"));
    assert!(message(&["data={kind=\"list\", path=\"a\", val_fraction=1.5}"]).contains("between 0 and 1"));
    assert!(message(&["data={kind=\"cifar\", path=\"a\", val_fraction=0.5}"]).contains("data.val_fraction"));
    let mut data = with(&[shared]).expect("valid").data;
    data.set_path("a".into());
    assert_eq!(data, with(&[shared]).expect("valid").data);
    data.set_path("local".into());
    assert!(matches!(data.source, DataSource::Webdataset { val_path: None, .. }), "one path for both splits");
}

#[test]
fn the_perceptron_rule_and_the_inputs_of_models_are_checked() {
    let refused = |set: &[&str]| points(set).expect_err("should be refused").to_string();
    assert!(refused(&["model.kind=perceptron"]).contains("train.lr"));
    assert!(refused(&["model.kind=lenet"]).contains("rows of numbers"));
    assert!(refused(&["data.image_size=28"]).contains("data.image_size"));
    assert!(refused(&["model.hidden=[]"]).contains("model.hidden"));
    assert!(refused(&["model.activation=gelu"]).contains("`relu`"));
    assert!(refused(&["model.kind=softmax", "model.loss=mse", "train.label_smoothing=0.1"]).contains("label_smoothing"));
    assert!(refused(&["data.kind=separable", "data.margin=0.9"]).contains("data.margin"));
}

#[test]
fn max_epochs_is_another_name_for_epochs() {
    let text = POINTS.to_owned() + "max_epochs = 7\n";
    assert_eq!(Config::parse(&text, "t", &[]).expect("valid").train.epochs, 7);
    assert_eq!(Config::parse(&text, "t", &["train.epochs=3".to_owned()]).expect("valid").train.epochs, 3);
    assert_eq!(points(&["train.max_epochs=5"]).expect("valid").train.epochs, 5);
}

#[test]
fn lenet_has_the_size_of_the_literature() {
    let input = InputShape { channels: 1, image_size: 28, classes: 10 };
    let layers = ModelConfig::Lenet(LenetConfig::default()).layers(input);
    assert_eq!(layers.iter().map(|l| l.parameters).sum::<u64>(), 61_706);
    let convolution = layers.iter().find(|l| l.name == "conv2").expect("it has one");
    assert_eq!((convolution.output.as_slice(), convolution.macs), ([16, 10, 10].as_slice(), 16 * 6 * 25 * 100));
}

#[test]
fn recipes_that_cannot_work_are_refused_and_say_what_would() {
    for (sets, words) in [
        (&["train.nesterov=true", "train.momentum=0"][..], "train.momentum above 0"),
        (&["train.nesterov=true", "train.optimizer=lars"], "train.optimizer = \"sgd\""),
        (&["train.trust_coefficient=0"], "above 0"),
        (&["train.schedule=onecycle", "train.warmup_epochs=1"], "rises by itself"),
        (&["train.schedule=plateau", "train.decay=1"], "below 1"),
        (&["train.schedule=polynomial", "train.power=0"], "above 0"),
        (&["train.lr_batch=0"], "leave it out"),
        (&["train.patience=0"], "leave it out"),
        (&["train.ema=1"], "below 1"),
        (&["train.keep_metric=top3"], "`top1`, `top5`"),
    ] {
        assert!(message(sets).contains(words), "{sets:?}: {}", message(sets));
    }
}

#[test]
fn every_recipe_that_others_published_says_that_it_was_not_run_here() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let load = |name: &str| {
        let path = folder.join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).expect("it is there");
        let about: Vec<&str> =
            text.lines().take_while(|line| line.starts_with('#')).map(|line| line.trim_start_matches(['#', ' '])).collect();
        assert!(about.join(" ").contains("It was not run to its end here."), "{name}");
        Config::load(&path, &[]).expect("it is valid").train
    };
    let paper = load("alexnet-2012");
    assert_eq!((paper.schedule, paper.global_batch, paper.scaled_lr(), paper.weight_decay), (ScheduleKind::Plateau, 128, 0.01, 5e-4));
    let torchvision = load("alexnet-torchvision");
    assert_eq!((torchvision.epochs, torchvision.global_batch, torchvision.weight_decay), (90, 256, 1e-4));
    let large = load("alexnet-large-batch");
    assert_eq!((large.optimizer, large.global_batch, large.scaled_lr()), (OptimizerKind::Lars, 8192, 0.32));
}

#[test]
fn new_keys_leave_older_runs_what_they_were() {
    let text = with(&[]).expect("valid").to_toml();
    for key in
        ["nesterov", "decay_bias", "trust_coefficient", "lr_batch", "ema", "keep ", "patience", "power", "plateau_patience", "keep_metric"]
    {
        assert!(!text.contains(key), "{key} in {text}");
    }
    for key in ["saturation", "hue", "grey", "erase_scale", "erase_ratio", "erase_value", "randaugment", "alpha", "eval_crops"] {
        assert!(!text.contains(key), "{key} in {text}");
    }
}

#[test]
fn strengths_of_augmentations_are_checked_and_read_back() {
    for (set, words) in [
        ("data.hue=0.6", "between 0 and 0.5"),
        ("data.saturation=-1", "between 0 and 1"),
        ("data.grey=2", "between 0 and 1"),
        ("data.erase_scale=[0.5, 1.5]", "up to 1"),
        ("data.erase_ratio=[2.0, 1.0]", "a smallest and a largest"),
        ("data.erase_value=white", "a number, an array of three"),
        ("data.erase_value=inf", "finite"),
        ("data={kind=\"cifar\", path=\"a\", eval_crops=\"ten\", eval_resize=1.0}", "above 1"),
        ("data.eval_crops=nine", "`ten`"),
        ("data.mixup_alpha=0", "between 0.01 and 100"),
        ("data.cutmix_alpha=nan", "between 0.01 and 100"),
        ("data.randaugment_magnitude=31", "at most 30"),
        ("data.randaugment_operations=15", "at most 14"),
    ] {
        assert!(message(&[set]).contains(words), "{set}: {}", message(&[set]));
    }
    let alone = |augment| message(&["train.global_batch=8", "train.shards=8", augment]);
    assert!(alone("data.augment=[\"mixup\"]").contains("set fewer shards"), "{}", alone("data.augment=[\"mixup\"]"));
    assert!(with(&["train.global_batch=16", "train.shards=8", "data.augment=[\"cutmix\"]"]).is_ok());
    for (set, value) in [
        ("data.erase_value=1", EraseValue::Same(1.0)),
        ("data.erase_value=[0.5, 0, -1]", EraseValue::Channels([0.5, 0.0, -1.0])),
        ("data.erase_value=random", EraseValue::Random(Random::Random)),
    ] {
        let config = with(&[set, "data.hue=0.25"]).unwrap_or_else(|e| panic!("{set}: {e}"));
        assert_eq!((config.data.pixels.erase_value, config.data.pixels.hue), (value, 0.25));
        assert_eq!(Config::parse(&config.to_toml(), "again", &[]).expect("valid"), config);
        assert_ne!(config.identity(), with(&[]).expect("valid").identity());
    }
}

#[test]
fn how_evaluations_are_made_belongs_to_a_run_that_follows_them() {
    let identity = |sets: &[&str]| with(sets).expect("valid").identity();
    for change in ["train.eval_epochs=2", "train.keep_metric=loss", "data.eval_resize=1.5", "data.eval_crops=ten"] {
        assert_eq!(identity(&[]), identity(&[change]), "{change}");
        assert_ne!(identity(&["train.schedule=plateau"]), identity(&["train.schedule=plateau", change]), "{change}");
    }
}

/// All objects of a schema that list keys, with the keys.
fn listed(schema: &serde_json::Value, found: &mut Vec<(String, serde_json::Value)>) {
    match schema {
        serde_json::Value::Object(object) => {
            if let Some(serde_json::Value::Object(keys)) = object.get("properties") {
                found.extend(keys.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
            object.values().for_each(|value| listed(value, found));
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| listed(value, found)),
        _ => {}
    }
}

#[test]
fn the_schema_says_what_each_key_is_for_and_configs_name_it() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(read("schema.json").trim_end(), Config::schema(), "`coordinator schema > configs/schema.json` makes it anew");
    let mut keys = Vec::new();
    listed(&serde_json::from_str(&Config::schema()).unwrap(), &mut keys);
    let known: usize = sections().iter().map(|(_, keys)| keys.len()).sum();
    assert!(keys.len() + 1 >= known, "{} keys of {known}", keys.len());
    for (key, value) in keys {
        // The kind of a model says by itself which one it is.
        let said = value["description"].as_str().is_some_and(|text| !text.is_empty());
        assert!(said || (key == "kind" && value["const"].is_string()), "`{key}` says nothing: {value}");
    }
    let mut configs = 0;
    for entry in std::fs::read_dir(&folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".toml") {
            assert!(read(&name).starts_with("#:schema ./schema.json\n"), "{name}");
            configs += 1;
        }
    }
    assert!(configs > 10);
}

#[test]
fn a_model_of_ones_own_has_keys_of_its_own() {
    let text = SMALL.replace("kind = \"alexnet\"\nwidth = 0.125", "kind = \"own\"\nname = \"mine\"\n[model.own]\nwidth = 8");
    let own = |sets: &[&str]| Config::parse(&text, "own.toml", &sets.iter().map(|&s| s.to_owned()).collect::<Vec<_>>());
    let input = InputShape { channels: 3, image_size: 64, classes: 4 };
    let plain = own(&[]).expect("valid");
    assert_eq!((plain.model.kind(), plain.model.layers(input).len()), ("mine", 0));
    assert!(plain.model.check_described(input).expect_err("nobody has").contains("--worker-binary"));
    assert_eq!(Config::parse(&plain.to_toml(), "again", &[]).expect("valid"), plain);
    let wider = own(&["model.own.width=9", "model.own.deep.er=true"]).expect("its keys are its own");
    assert_ne!(wider.identity(), plain.identity());
    assert!(own(&["model.name="]).expect_err("no name").to_string().contains("model.name"));
    assert!(own(&["model.width=9"]).expect_err("not a key of ours").to_string().contains("unknown field"));
    // What it consists of decides the weights, so it belongs to the run.
    let kind = LayerKind::Dense { inputs: 12_288, units: 4 };
    let layer = Layer { name: "head".to_owned(), kind, output: vec![4], parameters: 49_156, statistics: 8, macs: 49_152 };
    let mut described = plain.clone();
    let ModelConfig::Own(model) = &mut described.model else { panic!("another model") };
    model.described = Some(Described { input, layers: vec![layer.clone()] });
    assert_eq!(described.model.check_described(input), Ok(()));
    assert_eq!((described.model.parameters(input), described.model.values(input)), (49_156, 49_164));
    let again = Config::parse(&described.to_toml(), "again", &[]).expect("valid");
    assert_eq!((&again, again.model.layers(input)), (&described, vec![layer]));
    assert_ne!(described.identity(), plain.identity());
    assert!(described.model.check_described(InputShape { classes: 5, ..input }).expect_err("another input").contains("5 classes"));
}
