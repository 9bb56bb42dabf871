//! The command line of `worker`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use common::config::CorruptPolicy;
use common::run_dir::{Resume, Which};
use common::ui::{CompletionsArgs, LogArgs, ManArgs};

use crate::analysis::trained::Weights;
use crate::engine::device::Share;

/// Trains image classifiers: alone, or as one worker of a cluster.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train on this machine alone.
    Train(TrainArgs),
    /// Join the run of a coordinator.
    Join(JoinArgs),
    /// Have a worker on this machine leave its run, after the step in flight.
    Leave(LeaveArgs),
    /// Say how good a trained model is, class by class.
    Eval(EvalArgs),
    /// Ask a trained model about pictures, or about the rows of a CSV file.
    Predict(PredictArgs),
    /// Write the weights of a run for other programs: PyTorch, safetensors, ONNX.
    ///
    /// Weights for PyTorch have its order, and torchvision's names where torchvision has the
    /// model (AlexNet's preset "torchvision"): load_state_dict(torch.load(FILE)) takes them. An
    /// ONNX file is the whole model: input [batch, channels, height, width], output "logits"
    /// [batch, classes], with the names of the classes in its metadata.
    Export(ExportArgs),
    /// Draw curves, filters and decision regions of runs.
    Plot(PlotArgs),
    /// Show the layers of a model: shapes, parameters, arithmetic, memory.
    Summary(SummaryArgs),
    /// Print what a model consists of as JSON: how a coordinator learns it of a model of one's
    /// own.
    Describe(DescribeArgs),
    /// Filter a picture, a column of numbers or a film with a small kernel.
    Filter(FilterArgs),
    /// Get a dataset, or look at one.
    #[command(subcommand)]
    Data(DataCommand),
    /// Measure how fast the parts of training are here.
    #[command(subcommand)]
    Bench(crate::bench::BenchCommand),
    /// Say what this machine and this build can do, and what is wrong with the network to a
    /// coordinator.
    Doctor(DoctorArgs),
    /// Print what a shell needs to complete commands and options.
    Completions(CompletionsArgs),
    /// Write manual pages.
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The run's config, a TOML file.
    pub config: PathBuf,
    /// Where the run's files go [default: runs/NAME, or runs/NAME-2 and so on].
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// The devices that compute, between commas: cuda:N, cpu or flex; auto takes every GPU
    /// that there is, else the CPU.
    #[arg(long, alias = "device", value_name = "DEVICE,...", default_value = "auto")]
    pub devices: String,
    /// Change one key of the config, for example train.epochs=3.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Go on from the newest checkpoint in the run directory; with `auto`, start a
    /// run there if it holds none yet.
    #[arg(long, requires = "run_dir", num_args = 0..=1, require_equals = true, default_missing_value = "always", value_name = "WHEN")]
    pub resume: Option<Resume>,
    /// With --resume, go on although the data is not what the run was started with.
    #[arg(long, requires = "resume")]
    pub accept_data: bool,
    /// Write where the time goes, for ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The coordinator's addresses (host:port), as its join line says, best first: they are
    /// tried side by side.
    #[arg(required = true, value_name = "COORDINATOR", num_args = 1..=16)]
    pub coordinator: Vec<String>,
    /// The token of the coordinator's join line.
    #[arg(long, value_name = "TOKEN", required_unless_present = "token_file")]
    pub token: Option<String>,
    /// Read the token from a file instead, or from stdin if it is `-`.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// How long to wait for a coordinator that does not answer yet, for example 10m [default:
    /// half a minute, and its name must be known].
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
    /// A local copy of the data; without it, samples come from the coordinator.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The devices that compute, between commas: cuda:N, cpu or flex; auto takes every GPU
    /// that there is, else the CPU.
    #[arg(long, alias = "device", value_name = "DEVICE,...", default_value = "auto")]
    pub devices: String,
    /// Of these devices, take one worker's share: 2/3 is the second of three workers.
    #[arg(long, value_name = "N/OF", default_value = "1/1")]
    pub share: Share,
    /// The one UDP port of this worker, from which it reaches the coordinator and at which
    /// other workers reach it; port 0 takes any free one, and 0.0.0.0 and :: are all
    /// addresses of this machine, IPv4 and IPv6.
    #[arg(long, value_name = "ADDR", default_value = "[::]:0")]
    pub listen: SocketAddr,
    /// The ip:port that other workers reach this one at, if they reach none of its own
    /// addresses, nor the one that the coordinator sees.
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<SocketAddr>,
    /// Where samples that are streamed or come from an object store are kept [default: the
    /// user's cache directory].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The most gigabytes of them to keep on disk.
    #[arg(long, value_name = "GB", default_value_t = 20)]
    pub cache_gb: u64,
    /// Write where the time goes, for ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// This worker's place among those that join.
    #[arg(long, value_name = "RANK", hide = true)]
    pub preferred_rank: Option<u32>,
    /// End when stdin closes: how a launcher ties this process to its own life.
    #[arg(long, hide = true)]
    pub supervised: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Look at the network to this coordinator too, as its join line says: while a run goes
    /// on, too. No worker is enrolled.
    #[arg(long, value_name = "HOST:PORT")]
    pub coordinator: Option<String>,
    /// The token of the coordinator's join line; without it, only whether it answers.
    #[arg(long, value_name = "TOKEN", requires = "coordinator")]
    pub token: Option<String>,
    /// Read the token from a file instead, or from stdin if it is `-`.
    #[arg(long, value_name = "FILE", conflicts_with = "token", requires = "coordinator")]
    pub token_file: Option<PathBuf>,
    /// Where `worker join` would listen (UDP); port 0 takes any free one.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:0")]
    pub listen: SocketAddr,
    /// Where samples that are streamed would be kept [default: the user's cache directory].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The most gigabytes of them.
    #[arg(long, value_name = "GB", default_value_t = 20)]
    pub cache_gb: u64,
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// The worker's process id; not needed where there is only one.
    pub pid: Option<u32>,
    /// All workers of this user on this machine.
    #[arg(long, conflicts_with = "pid")]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run directory.
    pub run: PathBuf,
    /// Other data of the same kind [default: the run's own]. Of pictures that are
    /// not divided, and of a CSV file, all of it is evaluated.
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,
    /// Which checkpoint: last, best (by train.keep_metric, of those that were evaluated and
    /// are there), or a step.
    #[arg(long, value_name = "WHICH", default_value = "last")]
    pub checkpoint: Which,
    /// Which weights [default: ema of a run with train.ema, else raw].
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,
    /// Evaluate the training set.
    #[arg(long)]
    pub train: bool,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
    /// Where eval.json and confusion.png go [default: the run directory].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

#[derive(Debug, Args)]
pub struct PredictArgs {
    /// A run directory.
    pub run: PathBuf,
    /// Pictures; CSV files for a model that was trained on one.
    #[arg(required = true)]
    pub inputs: Vec<PathBuf>,
    /// Which checkpoint: last, best (by train.keep_metric, of those that were evaluated and
    /// are there), or a step.
    #[arg(long, value_name = "WHICH", default_value = "last")]
    pub checkpoint: Which,
    /// Which weights [default: ema of a run with train.ema, else raw].
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,
    /// How many classes to name.
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub top: usize,
    /// Swap black and white first: digits on paper are dark, MNIST's are light.
    #[arg(long)]
    pub invert: bool,
    /// Print a JSON array.
    #[arg(long)]
    pub json: bool,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run directory.
    pub run: PathBuf,
    /// What to write.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub to: crate::analysis::export::Format,
    /// The file to write [default: model.FORMAT in the run directory].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The checkpoint to take: best, last, or the step after which it was stored.
    #[arg(long, value_name = "best|last|STEP", default_value = "last")]
    pub checkpoint: Which,
    /// Which weights [default: ema of a run with train.ema, else raw].
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,
    /// Of ONNX: put the normalisation into the model. Its input then is pictures of 0 to 1,
    /// RGB or grey, or rows of a table as they stand there.
    #[arg(long)]
    pub normalize: bool,
}

#[derive(Debug, Args)]
pub struct PlotArgs {
    /// Run directories; several share one picture of curves.
    pub runs: Vec<PathBuf>,
    /// What to draw [default: of one run all that it has, of several the curves,
    /// without a run the activation functions].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub what: Vec<crate::analysis::plot::FigureKind>,
    /// Where the pictures go [default: the run directory if there is one run].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "png")]
    pub format: crate::figures::Format,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// A config.
    pub config: PathBuf,
    /// Change one key of the config, for example model.own.width=8.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// 3 for colour, 1 for grey; columns of a table [default: what the data has].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub channels: Option<u32>,
    /// Image size in pixels [default: what the data has].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub size: Option<u32>,
    /// [default: what the data has]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    pub classes: Option<u32>,
}

#[derive(Debug, Args)]
pub struct SummaryArgs {
    /// A config.
    #[arg(required_unless_present_any = ["compare", "megapixels"])]
    pub config: Option<PathBuf>,
    /// Print the ratios of a second config's model to a first one's.
    #[arg(long, num_args = 2, value_names = ["FIRST", "SECOND"])]
    pub compare: Vec<PathBuf>,
    /// What one hidden layer would take on a colour picture of so many megapixels.
    #[arg(long, value_name = "N")]
    pub megapixels: Option<f64>,
    /// Units of that hidden layer.
    #[arg(long, value_name = "UNITS", default_value_t = 100)]
    pub hidden: u64,
    /// Classes, instead of what the data has.
    #[arg(long, value_name = "N")]
    pub classes: Option<usize>,
    /// Change one key of the config, for example data.image_size=64.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub struct FilterArgs {
    /// edge, sharpen, gaussian, or a file with the numbers of a kernel.
    #[arg(long)]
    pub kernel: String,
    /// A picture, a CSV file, or a folder of frames.
    pub input: PathBuf,
    /// A PNG file, a CSV file, or a folder for frames.
    pub output: PathBuf,
    /// Turn the kernel around first: convolution instead of cross-correlation.
    #[arg(long)]
    pub flip: bool,
    /// Zeros around the input [default: half the kernel, which keeps the size].
    #[arg(long, value_name = "N")]
    pub padding: Option<usize>,
    /// Take every Nth place.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub stride: usize,
    /// The column of a CSV file.
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
    /// auto, cpu, cuda:N or flex.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Fetch a public dataset; what is there already is checked and kept.
    Get {
        /// mnist, fashion-mnist, cifar10, cifar100, imagenette or imagenette-160
        dataset: String,
        /// The folder to put it in [default: data/NAME].
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
        /// A folder that has the files, or an http address, to be used
        /// instead of the known places.
        #[arg(long, value_name = "PLACE")]
        from: Option<String>,
    },
    /// Write pictures as WebDataset shards near the size that training needs: they are
    /// read several times as fast. The same command goes on after an interruption.
    Pack {
        /// A folder with class folders or IDX files, or a config.
        source: PathBuf,
        /// The folder for the shards.
        out: PathBuf,
        /// Make larger pictures smaller until their shorter side has so many pixels.
        #[arg(long, value_name = "PIXELS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(8..=4096))]
        short_side: u32,
        /// Of JPEG.
        #[arg(long, value_name = "1..100", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=100))]
        quality: u32,
        /// What to do about a picture that does not decode: stop, or skip it and list it
        /// in skipped.txt.
        #[arg(long, value_name = "POLICY", default_value = "stop")]
        on_corrupt: CorruptPolicy,
    },
    /// Decode every sample of a dataset; of a pack, compare each with what was packed.
    Verify {
        /// A folder that `data pack` wrote, one with class folders or IDX files, a CSV file,
        /// or a config.
        data: PathBuf,
        /// The label column of a CSV file.
        #[arg(long, value_name = "COLUMN", default_value = "label")]
        label: String,
    },
    /// Print classes and counts, and draw some samples of each class.
    Show {
        /// A folder with class folders, tars, IDX or CIFAR files, a CSV or TSV file,
        /// a tar, or a config.
        data: PathBuf,
        /// The label column of a CSV file.
        #[arg(long, value_name = "COLUMN", default_value = "label")]
        label: String,
        /// Where the picture goes [default: NAME-sheet.png].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}
