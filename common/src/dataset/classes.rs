//! Names of classes: the order of labels that are texts, files with a name a line, and
//! the part of each class that is kept for validation.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::Path;

use super::data_file;
use super::source::DatasetError;
use crate::seed;

/// The most classes that the labels of pictures may name: more are no classes, and each
/// of them would be an output of the model.
pub(super) const MAX_CLASSES: usize = 100_000;

/// The distinct labels; numbers are in numeric order and come first.
pub(super) fn distinct<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut classes: Vec<&str> = labels.collect::<std::collections::HashSet<_>>().into_iter().collect();
    classes.sort_by(|a, b| order(a, b));
    classes.into_iter().map(str::to_owned).collect()
}

/// The place of a label among classes that [`distinct`] has made of it.
pub(super) fn label_of(classes: &[String], label: &str) -> u32 {
    classes.binary_search_by(|c| order(c, label)).unwrap_or_default() as u32
}

fn order(a: &str, b: &str) -> Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => x.total_cmp(&y).then_with(|| a.cmp(b)),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        (Err(_), Err(_)) => a.cmp(b),
    }
}

/// Reads a file with the name of a class in each line; empty lines count for nothing.
/// None if there is no such file. Two classes of one name are refused, since nobody
/// could tell them apart.
pub(super) fn named_in(path: &Path) -> Result<Option<Vec<String>>, DatasetError> {
    let Some(bytes) = data_file::small_file(path)? else { return Ok(None) };
    let text = std::str::from_utf8(&bytes).map_err(|e| DatasetError::invalid(path, format!("is no text in UTF-8: {e}")))?;
    let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines().zip(1usize..);
    let named: Vec<(&str, usize)> = lines.map(|(name, line)| (name.trim(), line)).filter(|(name, _)| !name.is_empty()).collect();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (name, line) in &named {
        if let Some(first) = seen.insert(name, *line) {
            let problem = format!("names the class `{name}` twice, in lines {first} and {line}: give each class a name of its own");
            return Err(DatasetError::invalid(path, problem));
        }
    }
    Ok(Some(named.into_iter().map(|(name, _)| name.to_owned()).collect()))
}

/// Which samples are kept for validation: the same share of every class that occurs.
/// The error is a class that has a single sample.
pub(super) fn validation(labels: &[u32], classes: usize, fraction: f64, seed: u64) -> Result<Vec<bool>, usize> {
    let mut chosen = vec![false; labels.len()];
    let mut of_class: Vec<Vec<u32>> = vec![Vec::new(); classes];
    labels.iter().zip(0..).for_each(|(&label, n)| of_class[label as usize].push(n));
    for (class, mut own) in of_class.into_iter().enumerate() {
        match own.len() {
            0 => continue,
            1 => return Err(class),
            _ => {}
        }
        let kept = ((own.len() as f64 * fraction).round() as usize).clamp(1, own.len() - 1);
        seed::shuffle(&mut own, &mut seed::stream(seed, "validation split", &[class as u64]));
        own[..kept].iter().for_each(|&n| chosen[n as usize] = true);
    }
    Ok(chosen)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_are_numbers_are_in_numeric_order() {
        let classes = distinct(["b", "10", "9", "a", "9", "1e1"].into_iter());
        assert_eq!(classes, ["9", "10", "1e1", "a", "b"]);
        assert!(classes.iter().zip(0..).all(|(class, n)| label_of(&classes, class) == n));
    }

    #[test]
    fn two_classes_of_one_name_are_refused_with_both_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("classes.txt");
        assert_eq!(named_in(&path).unwrap(), None);
        std::fs::write(&path, "\u{feff}a\r\n\r\n b c \r\n").unwrap();
        assert_eq!(named_in(&path).unwrap().unwrap(), ["a", "b c"]);
        std::fs::write(&path, "a\n\nb\n a\n").unwrap();
        let text = named_in(&path).unwrap_err().to_string();
        assert!(text.contains("classes.txt") && text.contains("`a` twice, in lines 1 and 4"), "{text}");
    }

    #[test]
    fn every_class_that_occurs_keeps_its_share() {
        let labels: Vec<u32> = (0..60).map(|n| [0, 2, 2][n % 3]).collect();
        let chosen = validation(&labels, 3, 0.25, 7).unwrap();
        let kept = |class| labels.iter().zip(&chosen).filter(|(l, c)| **l == class && **c).count();
        assert_eq!((kept(0), kept(2)), (5, 10));
        assert_eq!(validation(&[0, 0, 1], 2, 0.5, 7), Err(1));
    }
}
