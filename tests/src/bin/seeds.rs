//! Writes the seeds of the fuzz targets into `fuzz/corpus`: one valid example of each
//! kind of input, most of them from a small run that it makes.

use std::fs;
use std::path::{Path, PathBuf};

use cluster_tests::{Running, pictures, project};
use common::audit::TrainedSamples;
use common::metrics::{Evaluation, TimeShares};
use common::net::Authority;
use common::net::relay::Frame;
use common::ring::Encoding;
use common::ring::header::StreamHeader;
use common::run_dir::{RunView, Which};
use common::wire::messages::{
    BulkReply, BulkRequest, Dataset, FileSize, Finished, Generation, Member, StateSource, ToCoordinator, ToWorker,
};
use common::wire::{PROTOCOL, write_message};
use tempfile::TempDir;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Writes one example for a target.
fn put(target: &str, name: &str, parts: &[&[u8]]) -> Result<()> {
    let folder = project().join("fuzz/corpus").join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), parts.concat())?)
}

/// Text files one after the other, joined as the fuzz targets split them.
fn joined(paths: &[PathBuf]) -> Result<Vec<u8>> {
    let files: std::io::Result<Vec<Vec<u8>>> = paths.iter().map(fs::read).collect();
    Ok(files?.join(&0))
}

fn main() -> Result<()> {
    let folder = TempDir::new()?;
    let run = folder.path().join("run");
    let config = project().join("fuzz/small.toml");
    let arguments = ["local", &*config.to_string_lossy(), "--workers", "1", "--run-dir", &*run.to_string_lossy()];
    Running::start("coordinator", &arguments).wait().succeeded();
    messages(&run)?;
    files_of(&run)?;
    datasets(folder.path())
}

fn messages(run: &Path) -> Result<()> {
    let view = RunView::open(run)?;
    let (steps, evaluations) = view.metrics()?;
    let metrics = steps.first().cloned().ok_or("the small run has no step")?;
    let evaluation: Evaluation = evaluations.first().cloned().ok_or("the small run has no evaluation")?;
    let digest = view.checkpoint(Which::Last)?.meta.weights_blake3;
    let trained: TrainedSamples = view.trained()?.into_iter().next().ok_or("the small run has no audit")?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let to_coordinator = [
        ToCoordinator::Hello {
            protocol: PROTOCOL,
            ring_port: 4400,
            addresses: vec![([192, 0, 2, 1], 4400).into(), ([0xfd00, 0, 0, 0, 0, 0, 0, 1], 4400).into()],
            advertise: Some(([192, 0, 2, 1], 4400).into()),
            preferred_rank: Some(1),
            generation: Some(3),
        },
        ToCoordinator::Ready { device: "cpu".to_owned(), generation: 1, step: 7, committed: 1, products: None },
        ToCoordinator::Leaving,
        ToCoordinator::Heartbeat {
            step: 9,
            waiting: true,
            speed: Some(640.5),
            shares: Some(TimeShares { computing: 0.5, data: 0.125, others: 0.375 }),
        },
        ToCoordinator::Step { generation: 1, metrics },
        ToCoordinator::Evaluation(evaluation),
        ToCoordinator::Skipped { step: 3, name: "cat.jpg".to_owned(), problem: "is cut off".to_owned() },
        ToCoordinator::Trained(trained),
        ToCoordinator::Finished(Finished { step: 10, weights_blake3: digest, bytes_sent: 9, peak_rss_bytes: 1 << 30 }),
        ToCoordinator::Failed { reason: "no memory".to_owned(), run: false },
        ToCoordinator::Relayed { generation: 2, peer: "worker-3".to_owned() },
        ToCoordinator::Probed { peer: "worker-3".to_owned(), problem: Some("no answer".to_owned()), millis: 12 },
        ToCoordinator::Missed { generation: 2, peer: "worker-3".to_owned(), donor: true, reason: "no answer".to_owned() },
    ];
    let member =
        |n: u8| Member { name: format!("worker-{n}"), addr: ([192, 0, 2, n], 4400).into(), others: vec![([10, 0, 0, n], 4400).into()] };
    let generation = |state| Generation {
        number: 2,
        rank: 1,
        members: (1..4).map(member).collect(),
        shards: vec![3, 4, 1],
        first_step: 5,
        state,
        holders: vec![0, 2],
        form_ms: 2500,
        recorded: 4,
        evaluated: 0,
        stored: 0,
        products: Some(common::digest::Digest::of(b"products")),
    };
    let reason = || "worker-2 left".to_owned();
    let to_worker = [
        ToWorker::Welcome { config_toml: view.config().to_toml(), dataset: Dataset::from(&view.data().info), recorded: 0 },
        ToWorker::Refused { reason: reason() },
        ToWorker::Generation(generation(StateSource::Everywhere)),
        ToWorker::Generation(generation(StateSource::Donor { rank: 2 })),
        ToWorker::Generation(generation(StateSource::Checkpoint)),
        ToWorker::End { generation: 2, reason: reason() },
        ToWorker::Yield { generation: 2 },
        ToWorker::Spare,
        ToWorker::Probe { peers: vec![member(3)], bytes: 4096 },
        ToWorker::Store,
        ToWorker::Dropped { reason: reason() },
        ToWorker::Stop,
        ToWorker::Abort { reason: reason() },
        ToWorker::Relayed { reason: reason() },
        ToWorker::Goodbye,
    ];
    let files = || vec![FileSize { name: "model.safetensors".to_owned(), bytes: 100 }];
    let requests = [
        BulkRequest::Samples { val: false, ids: vec![1, 2, 3] },
        BulkRequest::PutCheckpoint { step: 5, weights_blake3: digest, files: files() },
        BulkRequest::GetCheckpoint { step: 5 },
        BulkRequest::GetWeights,
        BulkRequest::GetState { generation: 2, step: 5 },
        BulkRequest::Measure { bytes: 4096 },
    ];
    let replies = [
        BulkReply::Samples { labels: vec![0, 1], lengths: vec![10, 20] },
        BulkReply::Stored,
        BulkReply::Checkpoint { files: files() },
        BulkReply::Weights { bytes: 100, blake3: digest },
        BulkReply::State { files: files(), blake3: digest },
        BulkReply::Failed { reason: reason() },
    ];
    // One example of each message, after the number that selects its kind.
    macro_rules! put_all {
        ($number:literal, $messages:expr) => {
            for (n, message) in $messages.iter().enumerate() {
                let mut bytes = vec![$number];
                runtime.block_on(write_message(&mut bytes, message))?;
                put("messages", &format!("{}-{n}", $number), &[&bytes])?;
            }
        };
    }
    put_all!(0u8, to_coordinator);
    put_all!(1u8, to_worker);
    put_all!(2u8, requests);
    put_all!(3u8, replies);
    let relayed: Vec<u8> = [1, 40, 1200].iter().filter_map(|&length| Frame::new(3, &vec![7; length])).flat_map(Frame::into_bytes).collect();
    put("messages", "5-0", &[&[5], &relayed])?;
    let mut picture = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8 * 80, y as u8 * 80, 9])).write_to(&mut picture, image::ImageFormat::Png)?;
    put("messages", "4-0", &[&[4], picture.get_ref()])?;
    for encoding in [Encoding::F32, Encoding::Bf16, Encoding::Fixed, Encoding::Largest] {
        let header = StreamHeader { generation: 1, step: 2, bucket: 0, encoding, first_chunk: 1, length: 64 };
        put("ring", &format!("header-{}", encoding.code()), &[&[0], &header.to_bytes()])?;
    }
    for choice in 2..14 {
        put("ring", &format!("values-{choice}"), &[&[choice, 6], &[0x3f; 64]])?;
    }
    Ok(())
}

fn files_of(run: &Path) -> Result<()> {
    let keys = run.join("keys");
    let authority = Authority::open(&keys)?;
    put("token", "token", &[authority.tokens().standing(std::time::SystemTime::now())?.to_string().as_bytes()])?;
    put("keys", "all", &[&joined(&["tokens.json", "ca.pem", "ca.key"].map(|name| keys.join(name)))?])?;
    put("enrolment", "certificate", &[&[1], authority.certificate()])?;
    let key = rcgen::KeyPair::generate()?;
    put("enrolment", "request", &[&[2], rcgen::CertificateParams::default().serialize_request(&key)?.der()])?;

    for entry in fs::read_dir(project().join("configs"))? {
        let entry = entry?;
        put("config", &entry.file_name().to_string_lossy(), &[&fs::read(entry.path())?, b"\0train.lr=0.5\nmodel.kind=\"mlp\""])?;
    }

    let files = ["journal.jsonl", "metrics.jsonl", "audit.jsonl", "dataset.json"].map(|name| run.join(name));
    put("run_dir", "all", &[&joined(&files)?])?;

    let checkpoint = RunView::open(run)?.checkpoint(Which::Last)?.path;
    let [manifest, model, optimizer] = ["manifest.json", "model.safetensors", "optimizer.safetensors"].map(|name| checkpoint.join(name));
    put("checkpoint", "manifest", &[&[0], &fs::read(manifest)?])?;
    let (model, optimizer) = (fs::read(model)?, fs::read(optimizer)?);
    put("checkpoint", "state", &[&[1], &(model.len() as u16).to_le_bytes(), &model, &optimizer])
}

fn datasets(folder: &Path) -> Result<()> {
    put("dataset", "table", &[&[0], b"a,b,y\n1,2.5,0\n-3e2,4,1\n5,6,0\n7,8,1\n"])?;
    let idx = |dimensions: &[u32]| {
        let content = vec![1; dimensions.iter().product::<u32>() as usize];
        [&[0, 0, 8, dimensions.len() as u8], &*dimensions.iter().flat_map(|d| d.to_be_bytes()).collect::<Vec<u8>>(), &content].concat()
    };
    let files = [idx(&[4, 2, 2]), idx(&[4]), idx(&[2, 2, 2]), idx(&[2])];
    for (choice, name, zipped) in [(1, "idx", false), (2, "idx-zipped", true)] {
        let mut bytes = vec![choice];
        for file in &files {
            let file = if zipped { gzip(file)? } else { file.clone() };
            bytes.extend((file.len() as u16).to_le_bytes());
            bytes.extend(file);
        }
        put("dataset", name, &[&bytes])?;
    }
    let index = r#"{"version":2,"root":"/data","folders":{"a":1},"classes":["a","b"],"train":[["a/1.png",0,10]],"val":[["b/1.png",1,10]],"passed_over":{"kinds":[{"reason":{"ending":"txt"},"files":2,"examples":["a/n.txt"]},{"reason":"no_ending","files":1,"examples":["a/n"]}],"folders":[]}}"#;
    put("dataset", "index", &[&[3], index.as_bytes()])?;
    put("dataset", "kernel", &[&[6], b"# a blur\n1/16 2/16 1/16\n2/16, 4/16, 2/16\n1/16 2/16 1/16\n"])?;
    let made = cluster_tests::project().join("common/src/dataset/made");
    put("dataset", "shard", &[&[4], &gunzip(&fs::read(made.join("webdataset.tar.gz"))?)?])?;
    for entry in fs::read_dir(made.join("parquet"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "parquet") {
            put("dataset", &path.file_name().unwrap_or_default().to_string_lossy(), &[&[5], &fs::read(&path)?])?;
        }
    }
    let root = folder.join("pictures");
    pictures::class_folders(&root, 1, 2, 1);
    for name in ["0.png", "1.JPEG"] {
        put("picture", name, &[&fs::read(root.join("train/class 0").join(name))?])?;
    }
    Ok(())
}

fn gunzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut whole)?;
    Ok(whole)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, bytes)?;
    Ok(encoder.finish()?)
}
