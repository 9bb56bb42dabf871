//! What ILSVRC2012 says about its classes and its validation pictures, from the
//! development kit or from Kaggle's tables. A class is known by its WordNet ID (wnid),
//! "n01440764", and has names, "tench, Tinca tinca".

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use csv::StringRecord;
use flate2::read::GzDecoder;

use super::delimited::Delimited;
use super::matlab::{self, Value};
use super::source::DatasetError;

/// The development kit, packed, and the folder that it unpacks to.
pub(super) const KIT: &str = "ILSVRC2012_devkit_t12.tar.gz";
const KIT_FOLDER: &str = "ILSVRC2012_devkit_t12";
const TRUTH: &str = "data/ILSVRC2012_validation_ground_truth.txt";
const META: &str = "data/meta.mat";

/// Kaggle's tables.
pub(super) const MAPPING: &str = "LOC_synset_mapping.txt";
pub(super) const SOLUTION: &str = "LOC_val_solution.csv";

/// The most bytes that a file of the kit may have.
const MAX_BYTES: u64 = 64 << 20;

/// The names of all classes by wnid, and the wnid of each validation picture by its name
/// without ending.
pub(super) struct Names {
    pub(super) classes: BTreeMap<String, String>,
    pub(super) truth: HashMap<String, String>,
}

/// Reads Kaggle's tables where they lie in `folder`, and the kit for what they lack.
pub(super) fn read(folder: &Path) -> Result<Names, DatasetError> {
    let (mapping, solution) = (folder.join(MAPPING), folder.join(SOLUTION));
    let classes = mapping.exists().then(|| self::mapping(&mapping)).transpose()?;
    let truth = solution.exists().then(|| self::solution(&solution)).transpose()?;
    if let (Some(classes), Some(truth)) = (&classes, &truth) {
        return Ok(Names { classes: classes.clone(), truth: truth.clone() });
    }
    let lacking = if classes.is_none() { MAPPING } else { SOLUTION };
    let kit = Kit::find(folder)?.ok_or_else(|| {
        let problem = format!("holds neither {KIT} nor {lacking}: one of them must say what the classes and labels are");
        DatasetError::invalid(folder, problem)
    })?;
    let meta_path = kit.path(META);
    let synsets = synsets(&kit.meta).map_err(|problem| DatasetError::invalid(&meta_path, problem))?;
    let truth = match truth {
        Some(truth) => truth,
        None => ground_truth(&kit, &synsets)?,
    };
    let classes = classes.unwrap_or_else(|| synsets.into_values().collect());
    Ok(Names { classes, truth })
}

/// Two files of the development kit.
struct Kit {
    place: PathBuf,
    truth: String,
    meta: Vec<u8>,
}

impl Kit {
    fn find(folder: &Path) -> Result<Option<Self>, DatasetError> {
        let unpacked = folder.join(KIT_FOLDER);
        if unpacked.is_dir() {
            let read = |name: &str| std::fs::read(unpacked.join(name)).map_err(DatasetError::io(&unpacked.join(name)));
            return Ok(Some(Self { truth: String::from_utf8_lossy(&read(TRUTH)?).into_owned(), meta: read(META)?, place: unpacked }));
        }
        let place = folder.join(KIT);
        let file = match File::open(&place) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(DatasetError::io(&place)(e)),
        };
        let (mut truth, mut meta) = (None, None);
        let mut archive = tar::Archive::new(GzDecoder::new(file));
        for entry in archive.entries().map_err(DatasetError::io(&place))? {
            let mut entry = entry.map_err(DatasetError::io(&place))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let into = if name.ends_with(TRUTH) {
                &mut truth
            } else if name.ends_with(META) {
                &mut meta
            } else {
                continue;
            };
            let mut bytes = Vec::new();
            entry.by_ref().take(MAX_BYTES).read_to_end(&mut bytes).map_err(DatasetError::io(&place))?;
            *into = Some(bytes);
        }
        let lacks = |name: &str| DatasetError::invalid(&place, format!("lacks {name}: it is not the development kit of ILSVRC2012"));
        let truth = String::from_utf8_lossy(&truth.ok_or_else(|| lacks(TRUTH))?).into_owned();
        let meta = meta.ok_or_else(|| lacks(META))?;
        Ok(Some(Self { place, truth, meta }))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }
}

/// The classes of meta.mat by their number: wnid and names. Synsets above them, which
/// have children, are no classes.
fn synsets(meta: &[u8]) -> Result<BTreeMap<u32, (String, String)>, String> {
    let mut classes = BTreeMap::new();
    for synset in matlab::structures(meta, "synsets")? {
        let number = |name: &str| match synset.get(name) {
            Some(Value::Numbers(numbers)) => numbers.first().copied(),
            _ => None,
        };
        let text = |name: &str| match synset.get(name) {
            Some(Value::Text(text)) => Some(text.trim().to_owned()),
            _ => None,
        };
        let (Some(id), Some(wnid), Some(words)) = (number("ILSVRC2012_ID"), text("WNID"), text("words")) else {
            return Err("has a synset without ILSVRC2012_ID, WNID or words".to_owned());
        };
        if number("num_children").unwrap_or_default() == 0.0 {
            classes.insert(id as u32, (wnid, words));
        }
    }
    Ok(classes)
}

fn ground_truth(kit: &Kit, synsets: &BTreeMap<u32, (String, String)>) -> Result<HashMap<String, String>, DatasetError> {
    let mut truth = HashMap::new();
    for (text, line) in kit.truth.lines().zip(1..).filter(|(text, _)| !text.trim().is_empty()) {
        let wnid = text.trim().parse().ok().and_then(|id: u32| synsets.get(&id));
        let Some((wnid, _)) = wnid else {
            let problem = format!("has `{}` in line {line}, which is no class of {META}", text.trim());
            return Err(DatasetError::invalid(&kit.path(TRUTH), problem));
        };
        truth.insert(format!("ILSVRC2012_val_{line:08}"), wnid.clone());
    }
    Ok(truth)
}

/// Lines such as "n01440764 tench, Tinca tinca".
fn mapping(path: &Path) -> Result<BTreeMap<String, String>, DatasetError> {
    let text = std::fs::read_to_string(path).map_err(DatasetError::io(path))?;
    let mut classes = BTreeMap::new();
    for (text, line) in text.lines().zip(1..).filter(|(text, _)| !text.trim().is_empty()) {
        let Some((wnid, words)) = text.trim().split_once(char::is_whitespace) else {
            return Err(DatasetError::invalid(path, format!("has no wnid and names in line {line}: `n01440764 tench, Tinca tinca`")));
        };
        if classes.insert(wnid.to_owned(), words.trim().to_owned()).is_some() {
            return Err(DatasetError::invalid(path, format!("names `{wnid}` again in line {line}")));
        }
    }
    Ok(classes)
}

/// A CSV file of ImageId and PredictionString, "n01751748 111 108 230 276": a wnid and a
/// box, or several of one class.
fn solution(path: &Path) -> Result<HashMap<String, String>, DatasetError> {
    let mut file = Delimited::open(path, b',')?;
    let at = |name: &str| file.header().iter().position(|h| h == name);
    let (Some(id), Some(answer)) = (at("ImageId"), at("PredictionString")) else {
        return Err(file.invalid("has no columns `ImageId` and `PredictionString`".to_owned()));
    };
    let (mut truth, mut row) = (HashMap::new(), StringRecord::new());
    while let Some(line) = file.next(&mut row)? {
        let wnid = row.get(answer).unwrap_or_default().split_whitespace().next();
        let wnid = wnid.ok_or_else(|| file.invalid(format!("has no class in line {line}, column `PredictionString`")))?;
        truth.insert(row.get(id).unwrap_or_default().to_owned(), wnid.to_owned());
    }
    Ok(truth)
}

/// Names for people, in the order of `wnids`: the first name of each class; with its
/// wnid where two classes share it, as both cranes do, the bird and the machine.
pub(super) fn human(wnids: &[String], classes: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
    let first = |wnid: &String| {
        let words = classes.get(wnid).ok_or_else(|| format!("has a class `{wnid}`, which has no name in meta.mat or {MAPPING}"));
        words.map(|words| words.split(',').next().unwrap_or_default().trim().to_owned())
    };
    let names: Vec<String> = wnids.iter().map(first).collect::<Result<_, String>>()?;
    let mut counts: HashMap<&str, u32> = HashMap::new();
    names.iter().for_each(|name| *counts.entry(name).or_default() += 1);
    let one = |(name, wnid): (&String, &String)| if counts[name.as_str()] > 1 { format!("{name} ({wnid})") } else { name.clone() };
    Ok(names.iter().zip(wnids).map(one).collect())
}
