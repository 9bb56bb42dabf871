//! A CSV file with a header: one column is the label, the others are numbers.

use std::path::Path;

use csv::{ReaderBuilder, StringRecord};

use super::source::{Column, DatasetError};
use super::table::{Rows, Table};
use crate::seed;

/// The most classes that a label column may hold: a column with more is no label, and
/// each of them would be an output of the model.
const MAX_CLASSES: usize = 10_000;

/// Reads `path`. `val_fraction` of each class is kept for validation. With
/// `standardize` each feature has mean 0 and deviation 1 over the training rows.
pub(super) fn open(path: &Path, label: &str, val_fraction: f64, standardize: bool, seed: u64) -> Result<Table, DatasetError> {
    let bad = |problem: String| DatasetError::invalid(path, problem);
    let all_but_label = |header: &StringRecord| {
        let at = label_column(header, label)?;
        let features: Vec<usize> = (0..header.len()).filter(|&n| n != at).collect();
        if features.is_empty() {
            return Err(format!("has no column but the label `{label}`: there is nothing to learn from"));
        }
        Ok(Places { features, label: Some(at) })
    };
    let Read { header, places, values, labels, lines } = read(path, all_but_label)?;
    let mut columns: Vec<Column> = places.features.iter().filter_map(|&n| header.get(n)).map(Column::plain).collect();
    let labels: Vec<String> = labels.into_iter().flatten().collect();
    if labels.is_empty() {
        return Err(bad("has a header and no rows".to_owned()));
    }
    let classes = classes(&labels);
    if classes.len() < 2 || classes.len() > MAX_CLASSES {
        return Err(bad(format!(
            "has {} different values in its label column `{label}`, and 2 to {MAX_CLASSES} are needed",
            classes.len()
        )));
    }
    let label_of = |text: &String| classes.binary_search_by(|c| order(c, text)).unwrap_or_default() as u32;
    let labels: Vec<u32> = labels.iter().map(label_of).collect();
    let chosen = validation(&labels, classes.len(), val_fraction, seed).map_err(|class| {
        bad(format!("has a single row of the class `{}`: it needs at least two, one to train and one to validate", classes[class]))
    })?;
    let width = columns.len();
    if standardize {
        let training = || values.chunks_exact(width).zip(&chosen).filter(|(_, chosen)| !**chosen).map(|(row, _)| row);
        for (at, column) in columns.iter_mut().enumerate() {
            (column.mean, column.deviation) = moments(training().map(|row| row[at]));
        }
    }
    let (mut train, mut val) = (Rows::default(), Rows::default());
    let mut scaled = vec![0.0; width];
    for (((row, label), line), chosen) in values.chunks_exact(width).zip(labels).zip(lines).zip(chosen) {
        for ((to, from), column) in scaled.iter_mut().zip(row).zip(&columns) {
            *to = (from - column.mean) / column.deviation;
        }
        if chosen { &mut val } else { &mut train }.push(&scaled, label, line);
    }
    Ok(Table::new(columns, classes, train, val, format!("{} line", path.display())))
}

impl Table {
    /// Reads a CSV file for a model that was trained on `columns` and `classes`,
    /// scaled as in training; all rows are validation rows. Other columns are
    /// ignored, and so is a missing `label` column: then every row counts as the
    /// first class.
    pub fn open_like(path: &Path, label: &str, columns: &[Column], classes: &[String]) -> Result<Self, DatasetError> {
        let bad = |problem: String| DatasetError::invalid(path, problem);
        if columns.is_empty() {
            return Err(bad("cannot be read for a model that knows no columns: the run's dataset.json names none".to_owned()));
        }
        let places = |header: &StringRecord| {
            let at = |name: &str| header.iter().position(|h| h == name);
            let found: Result<Vec<usize>, String> =
                columns.iter().map(|c| at(&c.name).ok_or_else(|| format!("has no column `{}`, which the model needs", c.name))).collect();
            found.map(|features| Places { features, label: at(label) })
        };
        let read = read(path, places)?;
        let mut val = Rows::default();
        for ((row, text), line) in read.values.chunks_exact(columns.len()).zip(&read.labels).zip(read.lines) {
            let scaled: Vec<f32> = row.iter().zip(columns).map(|(v, c)| (v - c.mean) / c.deviation).collect();
            let class = text.as_ref().map_or(Some(0), |text| classes.iter().position(|c| c == text));
            let class = class.ok_or_else(|| {
                let text = text.as_deref().unwrap_or_default();
                bad(format!("has the label `{text}` in line {line}, and the model knows only {}", classes.join(", ")))
            })?;
            val.push(&scaled, class as u32, line);
        }
        if val.labels.is_empty() {
            return Err(bad("has a header and no rows".to_owned()));
        }
        Ok(Self::new(columns.to_vec(), classes.to_vec(), Rows::default(), val, format!("{} line", path.display())))
    }
}

/// The columns of features and label in a line.
struct Places {
    features: Vec<usize>,
    label: Option<usize>,
}

/// A file's content.
struct Read {
    header: StringRecord,
    places: Places,
    /// `[rows, features]`
    values: Vec<f32>,
    labels: Vec<Option<String>>,
    lines: Vec<u32>,
}

fn read(path: &Path, places: impl FnOnce(&StringRecord) -> Result<Places, String>) -> Result<Read, DatasetError> {
    let bad = |problem: String| DatasetError::invalid(path, problem);
    let broken = |e: csv::Error| {
        let line = |pos: Option<csv::Position>| pos.map_or(0, |p| p.line());
        match e.into_kind() {
            csv::ErrorKind::Io(source) => DatasetError::io(path)(source),
            csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
                bad(format!("has {len} values in line {}, and its header has {expected_len}", line(pos)))
            }
            csv::ErrorKind::Utf8 { pos, .. } => bad(format!("is not UTF-8 in line {}", line(pos))),
            other => bad(format!("is no CSV file: {other:?}")),
        }
    };
    let file = std::fs::File::open(path).map_err(DatasetError::io(path))?;
    let mut reader = ReaderBuilder::new().trim(csv::Trim::All).from_reader(std::io::BufReader::new(file));
    let header = reader.headers().map_err(broken)?.clone();
    let places = places(&header).map_err(bad)?;
    let mut read = Read { header, places, values: Vec::new(), labels: Vec::new(), lines: Vec::new() };
    let mut row = StringRecord::new();
    while reader.read_record(&mut row).map_err(broken)? {
        let line = row.position().map_or(0, csv::Position::line);
        for &n in &read.places.features {
            let text = row.get(n).unwrap_or_default();
            let value = text.parse::<f32>().ok().filter(|v| v.is_finite());
            let name = read.header.get(n).unwrap_or_default();
            read.values.push(value.ok_or_else(|| {
                bad(format!(
                    "has `{text}` in line {line}, column `{name}`, where a number is needed: every column but the label is a feature"
                ))
            })?);
        }
        read.labels.push(read.places.label.and_then(|at| row.get(at)).map(str::to_owned));
        read.lines.push(u32::try_from(line).unwrap_or(u32::MAX));
    }
    Ok(read)
}

fn label_column(header: &StringRecord, label: &str) -> Result<usize, String> {
    header.iter().position(|name| name == label).ok_or_else(|| {
        let names: Vec<String> = header.iter().map(|name| format!("`{name}`")).collect();
        format!("has no label column `{label}`; its columns are {}: name the right one with data.label", names.join(", "))
    })
}

/// The distinct labels; numbers are in numeric order.
fn classes(labels: &[String]) -> Vec<String> {
    let mut classes = labels.to_vec();
    classes.sort_by(|a, b| order(a, b));
    classes.dedup();
    classes
}

fn order(a: &str, b: &str) -> std::cmp::Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => x.total_cmp(&y).then_with(|| a.cmp(b)),
        (Ok(_), Err(_)) => std::cmp::Ordering::Less,
        (Err(_), Ok(_)) => std::cmp::Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

/// Which rows are kept for validation: the same share of every class. The error is a
/// class that has a single row.
fn validation(labels: &[u32], classes: usize, fraction: f64, seed: u64) -> Result<Vec<bool>, usize> {
    let mut chosen = vec![false; labels.len()];
    for class in 0..classes {
        let mut own: Vec<usize> = (0..labels.len()).filter(|&n| labels[n] as usize == class).collect();
        if own.len() < 2 {
            return Err(class);
        }
        let kept = ((own.len() as f64 * fraction).round() as usize).clamp(1, own.len() - 1);
        seed::shuffle(&mut own, &mut seed::stream(seed, "validation split", &[class as u64]));
        own[..kept].iter().for_each(|&n| chosen[n] = true);
    }
    Ok(chosen)
}

/// Mean and standard deviation; the deviation of a constant counts as 1.
fn moments(values: impl Iterator<Item = f32> + Clone) -> (f32, f32) {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().map(f64::from).sum::<f64>() / n;
    let variance = values.map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let deviation = variance.sqrt();
    (mean as f32, if deviation > 0.0 { deviation as f32 } else { 1.0 })
}
