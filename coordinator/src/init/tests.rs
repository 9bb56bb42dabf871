use super::*;

const CPU: Machine = Machine { cores: 2, gpus: 0, bf16: false };
const GPUS: Machine = Machine { cores: 64, gpus: 8, bf16: true };

/// A found dataset of this size, with the keys of a place.
fn found(format: SampleFormat, train: u32, side: Option<u32>) -> Found {
    let section = "kind = \"images\"\npath = \"data/my pictures\"\nval_fraction = 0.1";
    let table = if matches!(format, SampleFormat::Features { .. }) { section.replace("images", "csv") } else { section.to_owned() };
    let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    let info = dataset::DatasetInfo { format, classes, train, val: train / 10, fingerprint: common::digest::Digest::of(&[]) };
    Found { name: "my".to_owned(), section: toml::from_str(&table).unwrap(), info, side, is_there: true }
}

#[test]
fn every_config_is_one_that_trains_whatever_the_size() {
    let raw = |side| SampleFormat::Raw { height: side, width: side, channels: 1 };
    for machine in [CPU, GPUS, Machine { cores: 1, gpus: 0, bf16: true }, Machine { cores: 8, gpus: 3, bf16: true }] {
        for train in (1..200).chain([1000, 9469, 60_000, 1_281_167]) {
            for (format, side) in [
                (SampleFormat::Features { count: 4 }, None),
                (raw(5), Some(5)),
                (raw(28), Some(28)),
                (SampleFormat::Encoded, None),
                (SampleFormat::Encoded, Some(50)),
                (SampleFormat::Encoded, Some(375)),
            ] {
                let found = found(format, train, side);
                let text = recipe::config(&found, &machine);
                let config = Config::parse(&text, "new", &[]).unwrap_or_else(|e| panic!("{train} {format:?}: {e}\n{text}"));
                plan(&config, &found.info).unwrap_or_else(|e| panic!("{train} {format:?}: {e}\n{text}"));
            }
        }
    }
}

#[test]
fn model_size_and_pace_fit_what_was_found() {
    let of = |found: &Found, machine: &Machine| Config::parse(&recipe::config(found, machine), "new", &[]).unwrap();
    let photos = found(SampleFormat::Encoded, 9469, Some(375));
    let (on_cpu, on_gpus) = (of(&photos, &CPU), of(&photos, &GPUS));
    assert_eq!((on_cpu.model.kind(), on_cpu.data.pixels.image_size, on_cpu.train.shards), ("alexnet", 128, 16));
    assert_eq!((on_gpus.data.pixels.image_size, on_gpus.train.shards, on_gpus.train.global_batch), (224, 64, 128));
    let thumbnails = found(SampleFormat::Encoded, 9469, Some(100));
    assert_eq!(of(&thumbnails, &GPUS).data.pixels.image_size, 96);
    let digits = found(SampleFormat::Raw { height: 28, width: 28, channels: 1 }, 60_000, Some(28));
    assert_eq!((of(&digits, &CPU).model.kind(), of(&digits, &CPU).data.pixels.image_size), ("lenet", 28));
    assert_eq!(of(&found(SampleFormat::Features { count: 4 }, 150, None), &CPU).model.kind(), "mlp");
}

fn init(data: &Path, out: &Path) -> Result<String> {
    run(&InitArgs { data: data.to_owned(), out: Some(out.to_owned()), label: "label".to_owned() }, true)
}

#[test]
fn a_config_is_written_once_and_says_what_comes_next() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("iris.csv"), dir.path().join("iris.toml"));
    let rows: String = (0..60).map(|n| format!("{n},{},{}\n", n * 7 % 11, ["cat", "dog"][n % 2])).collect();
    std::fs::write(&data, format!("x,y,label\n{rows}")).unwrap();
    let said = init(&data, &out).unwrap();
    assert!(["mlp", "2 classes", "48 training and 12 validation", "coordinator check"].iter().all(|word| said.contains(word)), "{said}");
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.contains("name = \"iris\"") && text.contains("# the column of classes"), "{text}");
    let config = Config::load(&out, &[]).unwrap();
    let source = dataset::open(&config.data, config.seed, &|_| {}).unwrap();
    plan(&config, source.info()).unwrap();
    assert!(init(&data, &out).unwrap_err().to_string().contains("is there already"));
}

#[test]
fn kinds_make_configs_without_data_and_other_words_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for kind in GENERATED.into_iter().chain(KINDS) {
        let out = dir.path().join(format!("{kind}.toml"));
        let said = init(Path::new(kind), &out).unwrap_or_else(|e| panic!("{kind}: {e:#}"));
        Config::load(&out, &[]).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert_eq!(said.contains("put the data's place"), KINDS.contains(&kind), "{said}");
    }
    let refused = format!("{:#}", init(Path::new("picturs"), &dir.path().join("no.toml")).unwrap_err());
    assert!(["neither data nor a kind", "images", "does not exist"].iter().all(|word| refused.contains(word)), "{refused}");
}
