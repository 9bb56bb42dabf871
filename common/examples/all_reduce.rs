//! Times the ring all-reduce of one gradient between workers on this machine,
//! each with a single-threaded runtime, over encrypted QUIC on loopback:
//!
//! `cargo run --release -p common --example all_reduce -- --world 2 --elements 62378344 --wire f32`

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use common::net::{Authority, Endpoint, Role, worker_name};
use common::ring::Encoding;
use common::ring::{BucketLayout, Ring, RingPeer, RingSpec};

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Copy)]
struct Settings {
    world: u32,
    elements: usize,
    wire: Encoding,
    bucket_bytes: usize,
    connections: u32,
    rounds: u64,
}

fn settings() -> Result<Settings, Failure> {
    let mut settings = Settings { world: 2, elements: 62_378_344, wire: Encoding::F32, bucket_bytes: 8 << 20, connections: 1, rounds: 15 };
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("`{flag}` needs a value"))?;
        match flag.as_str() {
            "--world" => settings.world = value.parse()?,
            "--elements" => settings.elements = value.parse()?,
            "--bucket-bytes" => settings.bucket_bytes = value.parse()?,
            "--connections" => settings.connections = value.parse()?,
            "--rounds" => settings.rounds = value.parse()?,
            "--wire" if value == "f32" => settings.wire = Encoding::F32,
            "--wire" if value == "bf16" => settings.wire = Encoding::Bf16,
            _ => {
                return Err(
                    format!("`{flag} {value}`: --world, --elements, --bucket-bytes, --connections, --rounds, --wire f32|bf16").into()
                );
            }
        }
    }
    Ok(settings)
}

fn main() -> Result<(), Failure> {
    let settings = settings()?;
    let dir = std::env::temp_dir().join(format!("all-reduce-{}", std::process::id()));
    let authority = Authority::open(&dir)?;
    let mut workers = Vec::new();
    for rank in 0..settings.world {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let name = worker_name(u64::from(rank));
        let identity = authority.identity(&name)?;
        let endpoint = {
            let _inside = runtime.enter();
            Endpoint::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &identity, Role::Worker)?
        };
        workers.push((RingPeer { rank, name, addr: endpoint.local_addr()? }, endpoint, runtime));
    }
    std::fs::remove_dir_all(&dir)?;
    let peers: Vec<RingPeer> = workers.iter().map(|w| w.0.clone()).collect();
    let barrier = Arc::new(Barrier::new(settings.world as usize));
    let mut threads = Vec::new();
    for (peer, endpoint, runtime) in workers {
        let spec = RingSpec {
            generation: 1,
            rank: peer.rank,
            peers: peers.clone(),
            layout: BucketLayout::new(settings.elements, settings.bucket_bytes),
            encoding: settings.wire,
            connections: settings.connections,
            timeout: Duration::from_secs(10),
            form_within: Duration::from_secs(10),
        };
        let barrier = barrier.clone();
        threads.push(thread::spawn(move || rank(settings.rounds, &endpoint, spec, runtime, &barrier)));
    }
    let mut slowest: Vec<Duration> = Vec::new();
    for thread in threads {
        let times = thread.join().map_err(|_| "a worker panicked")??;
        slowest.resize(times.len(), Duration::ZERO);
        slowest.iter_mut().zip(times).for_each(|(slow, time)| *slow = time.max(*slow));
    }
    slowest.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    let (best, median, worst) = (slowest[0], slowest[slowest.len() / 2], slowest[slowest.len() - 1]);
    println!(
        "world {}, {} values: median {:.0} ms, best {:.0}, worst {:.0}",
        settings.world,
        settings.elements,
        ms(median),
        ms(best),
        ms(worst)
    );
    Ok(())
}

/// One worker: reduces the gradient again and again; the first two rounds, in
/// which packets grow, are not counted.
fn rank(
    rounds: u64,
    endpoint: &Endpoint,
    spec: RingSpec,
    runtime: tokio::runtime::Runtime,
    barrier: &Barrier,
) -> Result<Vec<Duration>, Failure> {
    let layout = spec.layout;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut ring = runtime.block_on(Ring::form(endpoint, spec))?;
    let handle = runtime.handle().clone();
    let driver = thread::spawn(move || runtime.block_on(stopped));
    let mut buckets: Vec<Vec<f32>> = (0..layout.len()).map(|b| vec![1.0; layout.range(b).len()]).collect();
    let mut times = Vec::new();
    for round in 0..rounds + 2 {
        barrier.wait();
        let began = Instant::now();
        for (bucket, values) in buckets.drain(..).enumerate() {
            ring.submit(round, bucket, values)?;
        }
        for bucket in 0..layout.len() {
            buckets.push(ring.wait(round, bucket)?);
        }
        times.push(began.elapsed());
        buckets.iter_mut().for_each(|b| b.fill(1.0));
    }
    barrier.wait();
    handle.block_on(ring.close());
    let _ = stop.send(());
    let _ = driver.join();
    Ok(times.split_off(2))
}
