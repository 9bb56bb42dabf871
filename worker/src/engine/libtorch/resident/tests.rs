//! Whole steps on streams that are late, and the operators that a step calls.

use std::sync::{Arc, Mutex};

use common::config::{AlexnetConfig, AlexnetPreset, MlpConfig, ModelConfig, OptimizerKind, Precision};

use super::super::late::{LateStreams, Waits};
use super::super::shim::{operator, operators_of};
use super::*;
use crate::data::{BatchName, Erased, Filling, Finish, Inputs, Pictures};
use crate::data::{MaskGroup, Masks, Second};
use crate::models::tests_of_own::normed;
use crate::models::{InputShape, Model, initial_weights};

/// What only the CPU's path calls: on a GPU, cuDNN computes instead.
const CPU_ONLY: [&str; 2] = ["mkldnn", "_nnpack"];

/// Everything that this engine does, by every optimizer and in both number formats.
fn everything() {
    let input = InputShape { channels: 3, image_size: 63, classes: 10 };
    let bytes: Vec<u8> = (0..2 * input.values()).map(|i| (i * 7) as u8).collect();
    let finish =
        Finish { affine: [[0.02, -1.0, -2.0, 2.0]; 3], erased: Some(Erased { part: [1, 2, 3, 4], filling: Filling::Numbers([0.0; 3]) }) };
    let pictures = Inputs::Pictures(Pictures { bytes: &bytes, finishes: &[finish; 2] });
    let images = Images { values: pictures, n: 2, input };
    let alexnet = |preset| ModelConfig::Alexnet(AlexnetConfig { preset, width: 0.04, dropout: 0.5, ..AlexnetConfig::default() });
    for model in [alexnet(AlexnetPreset::Notes), alexnet(AlexnetPreset::Torchvision), normed(4, input)] {
        for optimizer in [OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::Adamw, OptimizerKind::Lars, OptimizerKind::Lamb] {
            for precision in [Precision::F32, Precision::Bf16] {
                let train = TrainConfig {
                    optimizer,
                    precision,
                    clip_norm: Some(0.1),
                    label_smoothing: 0.1,
                    ema: Some(0.9),
                    ..TrainConfig::default()
                };
                let network = Model::new(&model, input, &super::super::device(None)).unwrap();
                let layout = ParamLayout::of_all(&network);
                let weights = initial_weights(&layout, &model, 1);
                let mut engine = ResidentEngine::new(
                    EngineSetup { model: &model, input, train: &train, trained: weights.len(), weights, threads: 1 },
                    None,
                )
                .unwrap();
                let masks = Masks::drawn(&network.dropouts(), &[MaskGroup { seed: 1, samples: 2 }]);
                let batch = TrainBatch { images, labels: &[1, 2], seconds: &[], masks: masks.all(), scale: 0.5, name: None };
                let seconds = [Second { label: 0, share: 0.25 }; 2];
                let mixed = TrainBatch { seconds: &seconds, ..batch };
                let update = Update { step: 0, lr: 0.01, factor: 1.0 };
                engine.gradients(&[batch, mixed], None, Delivery::Keep, &mut |_, _| ()).unwrap();
                engine.update(Gradient::Own, update).unwrap();
                let mut flat = vec![0.0; layout.total()];
                engine
                    .gradients(&[batch], None, Delivery::Sum, &mut |_, piece| {
                        _ = piece.values().map(|(at, span)| span.read(&mut flat[at..at + span.len()]))
                    })
                    .unwrap();
                engine.update(Gradient::Summed(&[Span::F32(&flat)]), update).unwrap();
                engine.swap_average().unwrap();
                engine.logits(images).unwrap();
            }
        }
    }
}

/// libtorch answers without a GPU, if it was built with CUDA.
#[test]
fn every_operator_has_a_cuda_kernel() {
    let ((), mut operators) = operators_of(everything);
    operators.retain(|(name, _)| !CPU_ONLY.iter().any(|of_cpu| name.contains(of_cpu)));
    operators.push(("aten::cudnn_convolution".to_owned(), String::new()));
    assert!(operators.len() > 40, "only {operators:?}");
    for wanted in [
        "aten::native_batch_norm_backward",
        "aten::convolution",
        "aten::convolution_backward",
        "aten::max_pool2d_with_indices_backward",
        "aten::mm",
    ] {
        assert!(operators.iter().any(|(name, _)| name == wanted), "{wanted} is not among {operators:?}");
    }
    let all: Vec<_> = operators.iter().map(|(name, overload)| (name, overload, operator(name, overload))).collect();
    let unknown: Vec<_> = all.iter().filter(|(_, _, (known, _))| !known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(operator("aten::no_such_operator", ""), (false, false));
    if super::super::CUDA_BUILD {
        let missing: Vec<_> = all.iter().filter(|(_, _, (_, cuda))| !cuda).collect();
        assert!(missing.is_empty(), "without a kernel for CUDA: {missing:?}");
    } else {
        println!("this libtorch has no CUDA: that its {} operators have CUDA kernels was not checked", all.len());
    }
}

const INPUT: InputShape = InputShape { channels: 1, image_size: 6, classes: 3 };
const BATCH: usize = 4;

fn small() -> ModelConfig {
    ModelConfig::Mlp(MlpConfig { hidden: vec![5], ..MlpConfig::default() })
}

fn engine(train: &TrainConfig, streams: Box<dyn Streams>) -> ResidentEngine {
    let model = small();
    let layout = ParamLayout::of_all(&Model::new(&model, INPUT, &super::super::device(None)).unwrap());
    let weights = initial_weights(&layout, &model, 1);
    ResidentEngine::on_streams(EngineSetup { model: &model, input: INPUT, train, trained: weights.len(), weights, threads: 1 }, streams)
        .unwrap()
}

/// Steps alone, steps whose sum comes back all at once, and steps whose sum comes back in
/// pieces; with a next batch that is known, unknown, or another one. Returns what a run
/// leaves behind.
fn run(streams: Box<dyn Streams>, precision: Precision) -> Result<Vec<f32>, EngineError> {
    let train = TrainConfig { precision, lr: 0.1, ..TrainConfig::default() };
    let mut engine = engine(&train, streams);
    let bytes = |step: usize| -> Vec<u8> { (0..BATCH * INPUT.values()).map(|i| (i * 31 + step * 57) as u8).collect() };
    let finishes = vec![Finish { affine: [[0.02, -1.0, -2.0, 2.0]; 3], erased: None }; BATCH];
    let masks = Masks::drawn(&[], &[MaskGroup { seed: 0, samples: BATCH }]);
    let name = |step: usize, part| BatchName { loader: 0, step: step as u64, part };
    let labels: Vec<Vec<i32>> = (0..7).map(|step| (0..BATCH).map(|i| ((i + step) % 3) as i32).collect()).collect();
    let seconds: Vec<Second> = (0..BATCH).map(|i| Second { label: (i % 3) as i32, share: 0.1 * i as f32 }).collect();
    let pictures: Vec<Vec<u8>> = (0..7).map(bytes).collect();
    let batch = |step: usize| TrainBatch {
        images: Images { values: Inputs::Pictures(Pictures { bytes: &pictures[step], finishes: &finishes }), n: BATCH, input: INPUT },
        labels: &labels[step],
        // The first two make both parcels as large as any: memory that grows waits for what left
        // it, and these streams keep that alive.
        seconds: if step == 2 { &[] } else { &seconds },
        masks: masks.all(),
        scale: 0.25,
        name: Some(name(step, 0)),
    };
    let mut left = Vec::new();
    for step in 0..5 {
        let next = [Some(batch(step + 1)), None, Some(batch(6)), Some(batch(step + 1)), None][step];
        let (parts, delivery) = match step {
            0 | 3 => ([batch(step)].to_vec(), Delivery::Keep),
            _ => (
                [batch(step).part(&(0..1)), TrainBatch { name: Some(name(step, 1)), ..batch(step).part(&(1..BATCH)) }].to_vec(),
                if step == 1 { Delivery::Sum } else { Delivery::SumInPieces },
            ),
        };
        let mut flat = vec![f32::NAN; engine.network.layout.total()];
        let (sums, _) = engine.gradients(&parts, next.as_ref(), delivery, &mut |_, piece| {
            _ = piece.values().map(|(at, span)| span.read(&mut flat[at..at + span.len()]))
        })?;
        left.push(sums.loss as f32);
        let update = Update { step: step as u64, lr: 0.1, factor: 1.0 };
        if delivery == Delivery::Keep {
            engine.update(Gradient::Own, update)?;
            continue;
        }
        let (front, back) = flat.split_at(11);
        if step != 4 {
            engine.receive(11, Span::F32(back))?;
            engine.receive(0, Span::F32(front))?;
        }
        engine.update(Gradient::Summed(&[Span::F32(front), Span::F32(back)]), update)?;
    }
    left.extend_from_slice(&engine.weights()?);
    Ok(left)
}

fn late(seed: u64, waits: &Arc<Waits>) -> Box<dyn Streams> {
    Box::new(LateStreams::new(seed, Arc::clone(waits)))
}

#[test]
fn copies_that_are_late_change_nothing() {
    for (precision, seeds) in [(Precision::F32, 0..2000), (Precision::Bf16, 2000..2200)] {
        let expected = run(Box::new(InlineStreams), precision).unwrap();
        assert!(expected.iter().all(|value| value.is_finite()));
        // A run mostly waits for copies.
        let seeds = Mutex::new(seeds);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(seed) = { seeds.lock().unwrap().next() } {
                        assert_eq!(run(late(seed, &Arc::default()), precision).unwrap(), expected, "seed {seed}, {precision:?}");
                    }
                });
            }
        });
    }
}

#[test]
fn a_wait_that_is_left_out_is_found() {
    let expected = run(Box::new(InlineStreams), Precision::F32).unwrap();
    let counting = Arc::<Waits>::default();
    run(late(0, &counting), Precision::F32).unwrap();
    let waits = counting.counted.load(std::sync::atomic::Ordering::Relaxed);
    assert!(waits > 10, "only {waits} waits");
    for left_out in 0..waits {
        let waits = || Arc::new(Waits { left_out: Some(left_out), ..Waits::default() });
        let found = (0..50).any(|seed| run(late(seed, &waits()), Precision::F32).ok().as_ref() != Some(&expected));
        assert!(found, "nobody misses wait {left_out}");
    }
}
