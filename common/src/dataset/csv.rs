//! A CSV file with a header: one column is the label, the others are numbers. They are
//! read, centred and scaled in f64: of seconds since 1970, f32 tells apart every second
//! minute only.

use std::path::Path;

use csv::StringRecord;

use super::classes::{distinct, label_of, validation};
use super::delimited::Delimited;
use super::source::{Column, DatasetError};
use super::table::{Rows, Table};

/// The most classes that a label column may hold: a column with more is no label, and
/// each of them would be an output of the model.
const MAX_CLASSES: usize = 10_000;

/// Reads `path`. `val_fraction` of each class is kept for validation. With
/// `standardize` each feature has mean 0 and deviation 1 over the training rows.
pub(super) fn open(path: &Path, label: &str, val_fraction: f64, standardize: bool, seed: u64) -> Result<Table, DatasetError> {
    let bad = |problem: String| DatasetError::invalid(path, problem);
    let file = Delimited::open(path, b',')?;
    file.refuse_twins(|_| true)?;
    let at = label_column(file.header(), label).map_err(bad)?;
    let features: Vec<usize> = (0..file.header().len()).filter(|&n| n != at).collect();
    if features.is_empty() {
        return Err(bad(format!("has no column but the label `{label}`: there is nothing to learn from")));
    }
    let mut columns: Vec<Column> = features.iter().filter_map(|&n| file.header().get(n)).map(Column::plain).collect();
    let Read { values, labels, lines } = read(file, &features, Some(at))?;
    if let Some((_, line)) = labels.iter().zip(&lines).find(|(label, _)| label.is_empty()) {
        return Err(bad(format!("has no label in line {line}, column `{label}`: fill it in or leave the row out")));
    }
    let classes = distinct(labels.iter().map(String::as_str));
    if classes.len() < 2 || classes.len() > MAX_CLASSES {
        return Err(bad(format!(
            "has {} different values in its label column `{label}`, and 2 to {MAX_CLASSES} are needed",
            classes.len()
        )));
    }
    let labels: Vec<u32> = labels.iter().map(|text| label_of(&classes, text)).collect();
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
    for (((row, label), line), chosen) in values.chunks_exact(width).zip(labels).zip(lines).zip(chosen) {
        let scaled = scaled(row, &columns, line).map_err(bad)?;
        if chosen { &mut val } else { &mut train }.push(&scaled, label, line);
    }
    Ok(Table::new(columns, classes, train, val, format!("{} line", path.display())))
}

/// What becomes of rows that say no class, in a table for a trained model: where the
/// label is empty or `?`, unless that is one of the classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlabelled {
    /// They count as the first class: the model is asked, and its answers are counted
    /// against no label.
    Keep,
    /// They are left out, and a warning says how many: right and wrong are counted.
    LeaveOut,
}

impl Table {
    /// Reads a CSV file for a model that was trained on `columns` and `classes`,
    /// scaled as in training; all rows are validation rows. Other columns are
    /// ignored. Without a `label` column no row has a label.
    pub fn open_like(
        path: &Path,
        label: &str,
        columns: &[Column],
        classes: &[String],
        unlabelled: Unlabelled,
    ) -> Result<Self, DatasetError> {
        let bad = |problem: String| DatasetError::invalid(path, problem);
        if columns.is_empty() {
            return Err(bad("cannot be read for a model that knows no columns: the run's dataset.json names none".to_owned()));
        }
        let file = Delimited::open(path, b',')?;
        file.refuse_twins(|name| name == label || columns.iter().any(|c| c.name == name))?;
        let at = |name: &str| file.header().iter().position(|h| h == name);
        let features: Result<Vec<usize>, String> =
            columns.iter().map(|c| at(&c.name).ok_or_else(|| format!("has no column `{}`, which the model needs", c.name))).collect();
        let (features, label_at) = (features.map_err(bad)?, at(label));
        if label_at.is_none() && unlabelled == Unlabelled::LeaveOut {
            return Err(bad(format!(
                "has no label column `{label}`: nothing says which answers are right (`worker predict` gives answers)"
            )));
        }
        let read = read(file, &features, label_at)?;
        let (rows, mut left_out) = (read.lines.len(), 0);
        let mut labels = read.labels.into_iter();
        let mut val = Rows::default();
        for (row, line) in read.values.chunks_exact(columns.len()).zip(read.lines) {
            let text = labels.next().unwrap_or_default();
            let class = match classes.iter().position(|c| *c == text) {
                Some(class) => class,
                None if matches!(text.as_str(), "" | "?") && unlabelled == Unlabelled::Keep => 0,
                None if matches!(text.as_str(), "" | "?") => {
                    left_out += 1;
                    continue;
                }
                None => {
                    return Err(bad(format!("has the label `{text}` in line {line}, and the model knows only {}", classes.join(", "))));
                }
            };
            val.push(&scaled(row, columns, line).map_err(bad)?, class as u32, line);
        }
        if left_out == rows {
            return Err(bad(format!("has no label in any of its {rows} rows: nothing says which answers are right")));
        }
        if left_out > 0 {
            tracing::warn!("{left_out} of the {rows} rows of `{}` have no label and are left out", path.display());
        }
        Ok(Self::new(columns.to_vec(), classes.to_vec(), Rows::default(), val, format!("{} line", path.display())))
    }
}

/// A file's rows; there is at least one.
struct Read {
    /// `[rows, features]`
    values: Vec<f64>,
    /// Of each row, if there is a column of labels.
    labels: Vec<String>,
    lines: Vec<u32>,
}

fn read(mut file: Delimited, features: &[usize], label: Option<usize>) -> Result<Read, DatasetError> {
    let mut read = Read { values: Vec::new(), labels: Vec::new(), lines: Vec::new() };
    let mut row = StringRecord::new();
    while let Some(line) = file.next(&mut row)? {
        for &n in features {
            let text = row.get(n).unwrap_or_default();
            let value = number(text).map_err(|problem| {
                let name = file.header().get(n).unwrap_or_default();
                let found = if text.is_empty() { "no value".to_owned() } else { format!("`{text}`") };
                file.invalid(format!("has {found} in line {line}, column `{name}`, {problem}"))
            })?;
            read.values.push(value);
        }
        if let Some(at) = label {
            read.labels.push(row.get(at).unwrap_or_default().to_owned());
        }
        read.lines.push(line);
    }
    if read.lines.is_empty() {
        return Err(file.invalid("has a header and no rows".to_owned()));
    }
    Ok(read)
}

/// A finite number, or what is wrong with it.
fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.abs() <= f64::from(f32::MAX) => Ok(value),
        // "inf" and "nan" parse too.
        Ok(_) if text.ends_with(char::is_alphabetic) => Err("where a finite number is needed".to_owned()),
        Ok(_) => Err(format!("which is out of range: numbers up to {:.1e} can be learned from", f32::MAX)),
        Err(_) => Err("where a number is needed: every column but the label is a feature".to_owned()),
    }
}

/// A row as the model receives it.
fn scaled(row: &[f64], columns: &[Column], line: u32) -> Result<Vec<f32>, String> {
    let one = |(value, column): (&f64, &Column)| {
        let scaled = column.scaled(*value);
        if scaled.is_finite() {
            return Ok(scaled);
        }
        let Column { name, mean, deviation } = column;
        Err(format!(
            "has {value:e} in line {line}, column `{name}`, which no f32 holds once it is scaled by mean {mean:e} and deviation {deviation:e}"
        ))
    };
    row.iter().zip(columns).map(one).collect()
}

fn label_column(header: &StringRecord, label: &str) -> Result<usize, String> {
    header.iter().position(|name| name == label).ok_or_else(|| {
        let names: Vec<String> = header.iter().map(|name| format!("`{name}`")).collect();
        let single = header.iter().next().filter(|_| header.len() == 1).unwrap_or_default();
        let hint = match single.find([';', '\t', '|']) {
            Some(_) => "its values must have commas between them",
            None => "name the right one with data.label",
        };
        format!("has no label column `{label}`; its columns are {}: {hint}", names.join(", "))
    })
}

/// Mean and standard deviation; the deviation of a constant counts as 1. Summed as
/// differences from the first value, so that a constant has no deviation at all and
/// large numbers keep their digits.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count().max(1) as f64;
    let first = values.clone().next().unwrap_or_default();
    let mean = first + values.clone().map(|v| v - first).sum::<f64>() / n;
    let variance = values.map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let deviation = variance.sqrt();
    (mean, if deviation > 0.0 { deviation } else { 1.0 })
}
