#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use tempfile::tempdir;

use super::*;

fn open_csv(text: &str) -> Result<Table, DatasetError> {
    let dir = tempdir().unwrap();
    let path = dir.path().join("t.csv");
    fs::write(&path, text).unwrap();
    csv::open(&path, "label", 0.25, true, 1)
}

fn rows(table: &Table, split: Split) -> Vec<(u32, Vec<f32>)> {
    let ids: Vec<u32> = (0..table.info().len(split)).collect();
    let floats = |s: &Sample| s.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    table.read(split, &ids).unwrap().iter().map(|s| (s.label, floats(s))).collect()
}

#[test]
fn a_csv_file_becomes_standardized_rows_in_two_splits() {
    let lines: String = (0..48).map(|n| format!("{},{}, {} ,5\n", n, if n % 4 == 0 { "10" } else { "9" }, 2 * n)).collect();
    let table = open_csv(&format!("a,label,b,c\n{lines}")).unwrap();
    // Numbers are in numeric order, and each class keeps its share.
    assert_eq!(table.info().classes, ["9", "10"]);
    assert_eq!((table.info().train, table.info().val), (36, 12));
    assert_eq!(table.info().format, SampleFormat::Features { count: 3 });
    let train = rows(&table, Split::Train);
    for feature in 0..2 {
        let mean: f32 = train.iter().map(|(_, row)| row[feature]).sum::<f32>() / 36.0;
        let variance: f32 = train.iter().map(|(_, row)| row[feature].powi(2)).sum::<f32>() / 36.0;
        assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4, "{mean} {variance}");
    }
    // The constant column is 0, not a division by 0.
    assert!(train.iter().all(|(_, row)| row[2] == 0.0));
    // Raw values come back through the columns, whatever the split.
    let (a, b) = (&table.columns()[0], &table.columns()[1]);
    for (label, row) in train.iter().chain(&rows(&table, Split::Val)) {
        let (a, b) = (a.raw(row[0]), b.raw(row[1]));
        assert!((b - 2.0 * a).abs() < 1e-3 && (a.round() as u32).is_multiple_of(4) == (*label == 1), "{a} {b} {label}");
    }
}

#[test]
fn bad_csv_files_are_refused_by_name_line_and_cause() {
    let cases = [
        ("a,lable\n1,x\n", "no label column `label`; its columns are `a`, `lable`"),
        ("a,label\n1,x\noops,y\n", "`oops` in line 3, column `a`"),
        ("a,label\n1,x\ninf,y\n", "`inf` in line 3"),
        ("a,label\n1,x\n1,2,3\n", "3 values in line 3, and its header has 2"),
        ("a,label\n", "no rows"),
        ("", "is empty"),
        ("\u{feff} \r\n\n", "is empty"),
        ("a;label\n1;x\n", "must have commas"),
        ("a,label\n1,x\n\n\"2\n\",y\n,y\n", "has no value in line 6, column `a`"),
        ("a,label\n1,\n2,y\n", "no label in line 2, column `label`"),
        ("a,label\n4.98e+38,x\n", "`4.98e+38` in line 2, column `a`, which is out of range: numbers up to 3.4e38"),
        ("a,label\n1,x\n-1e999,x\n", "`-1e999` in line 3, column `a`, which is out of range"),
        ("a,label\nnan,x\n", "`nan` in line 2, column `a`, where a finite number"),
        ("x,x,label\n1,2,a\n", "two columns named `x`, columns 1 and 2"),
        ("a,label, label \n1,a,a\n", "two columns named `label`, columns 2 and 3"),
        (",x,,label\n1,2,3,a\n", "two columns without a name, columns 1 and 3"),
        ("<!DOCTYPE html><html></html>", "is an HTML page"),
        ("label\nx\ny\n", "nothing to learn from"),
        ("a,label\n1,x\n2,x\n", "1 different values"),
        ("a,label\n1,x\n2,y\n3,y\n", "single row of the class `x`"),
    ];
    for (text, expected) in cases {
        let error = open_csv(text).err().expect("should be refused").to_string();
        assert!(error.contains("t.csv") && error.contains(expected), "{text:?}: {error}");
    }
    let error = csv::open(Path::new("/nowhere/x.csv"), "label", 0.2, true, 1).err().unwrap().to_string();
    assert!(error.contains("/nowhere/x.csv"), "{error}");
}

#[test]
fn xor_is_its_four_corners() {
    let table = points::xor(4, 8, 0.0, 1);
    let expected = [(0, vec![0.0, 0.0]), (1, vec![0.0, 1.0]), (1, vec![1.0, 0.0]), (0, vec![1.0, 1.0])];
    assert_eq!(rows(&table, Split::Train), expected);
    assert_eq!(rows(&table, Split::Val).len(), 8);
    let noisy = rows(&points::xor(4, 4, 0.1, 1), Split::Train);
    assert!(noisy.iter().zip(&expected).all(|(a, b)| a.0 == b.0 && a.1 != b.1 && (a.1[0] - b.1[0]).abs() < 0.5));
}

#[test]
fn separable_points_lie_in_the_ball_and_differ_by_split_and_seed() {
    for features in [1, 2, 5] {
        let table = points::separable(50, 20, features, 0.1, 3);
        let train = rows(&table, Split::Train);
        assert!(train.iter().all(|(_, p)| p.iter().map(|v| v * v).sum::<f32>() <= 1.0001));
        assert_eq!(train.iter().filter(|(label, _)| *label == 1).count(), 25);
        assert_ne!(train[..20], rows(&table, Split::Val)[..]);
        assert_ne!(train, rows(&points::separable(50, 20, features, 0.1, 4), Split::Train));
    }
}

#[test]
fn other_rows_are_scaled_as_the_training_rows_were() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("other.csv");
    let columns = [Column { name: "a".to_owned(), mean: 10.0, deviation: 2.0 }];
    let classes = ["x".to_owned(), "y".to_owned()];
    fs::write(&path, "note,label,a\nfree text,y,14\n,x,8\n").unwrap();
    let table = Table::open_like(&path, "label", &columns, &classes, Unlabelled::Keep).unwrap();
    assert_eq!(rows(&table, Split::Val), [(1, vec![2.0]), (0, vec![-1.0])]);
    fs::write(&path, "a\n12\n").unwrap();
    assert_eq!(rows(&Table::open_like(&path, "label", &columns, &classes, Unlabelled::Keep).unwrap(), Split::Val), [(0, vec![1.0])]);
    fs::write(&path, "a,label\n12,z\n").unwrap();
    assert!(
        Table::open_like(&path, "label", &columns, &classes, Unlabelled::Keep).err().unwrap().to_string().contains("label `z` in line 2")
    );
    fs::write(&path, "b\n12\n").unwrap();
    assert!(Table::open_like(&path, "label", &columns, &classes, Unlabelled::Keep).err().unwrap().to_string().contains("no column `a`"));
    assert!(Table::open_like(&path, "label", &[], &classes, Unlabelled::Keep).err().unwrap().to_string().contains("dataset.json"));
}

#[test]
fn lines_are_those_that_an_editor_shows() {
    // Each fault stands in the line that is its number of "@" from 1.
    let cases = [
        "a,label\n1,x\n@,y\n",
        "a,label\r\n1,x\r\n@,y\r\n",
        "a,label\r1,x\r@,y\r",
        "\u{feff}a,label\n\n\n1,x\n\n@,y\n",
        "\r\n\r\na,label\r\n\r\n1,x\r\n\r\n\r\n@,y\r\n",
        "a,label\n1,\"x\ny\n\"\n@,y\n",
        "\"a\",label\r\n1,\"x\r\ny\"\r\n\r\n@,y",
        "a,label\n1,x\n@,y,z\n",
        "a,label\n\n1,\"x\n\"\n\n@,y,z\n",
    ];
    for text in cases {
        let before = &text[..text.find('@').unwrap()];
        let line = 1 + before.replace("\r\n", "\n").replace('\r', "\n").matches('\n').count();
        let error = open_csv(text).err().expect("should be refused").to_string();
        assert!(error.contains(&format!("in line {line},")), "{text:?}, line {line}: {error}");
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("t.csv");
    fs::write(&path, b"a,label\n\n1,x\n2,caf\xe9\n").unwrap();
    let error = csv::open(&path, "label", 0.25, true, 1).err().unwrap().to_string();
    assert!(error.contains("not UTF-8 in line 4"), "{error}");
    // The rows of an open table are named by their lines too.
    let table = open_csv("\u{feff} a , label \r\n\r\n1, x \r\n2,x\r\n\r\n3,y\r\n4,\"y\"\r\n").unwrap();
    let mut lines: Vec<String> = [Split::Train, Split::Val].iter().flat_map(|&s| [0, 1].map(|id| table.name(s, id))).collect();
    lines.sort();
    let ends: Vec<&str> = lines.iter().filter_map(|l| l.rsplit(' ').next()).collect();
    assert_eq!((ends, table.info().classes.join(" ").as_str()), (vec!["3", "4", "6", "7"], "x y"));
    assert_eq!(table.columns()[0].name, "a");
}

#[test]
fn large_numbers_are_centred_before_they_lose_digits() {
    let lines: String = (0..60).map(|n| format!("{},{},0.1\n", 1_700_000_000u64 + n, if n < 30 { "early" } else { "late" })).collect();
    let table = open_csv(&format!("time,label,constant\n{lines}")).unwrap();
    let mut values: Vec<(f32, u32)> = rows(&table, Split::Train).iter().map(|(label, row)| (row[0], *label)).collect();
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(values.windows(2).all(|pair| pair[0].0 < pair[1].0), "no two are the same");
    assert!(values.iter().zip(0..).all(|((_, label), n)| *label == u32::from(n >= values.len() / 2)), "and the classes lie apart");
    let column = &table.columns()[0];
    assert!((column.mean - 1_700_000_029.5).abs() < 5.0 && (column.raw(values[0].0) - 1_700_000_000.0).abs() < 9.0);
    // Sums of 0.1 are not exact; its deviation is.
    assert_eq!(table.columns()[1], Column { name: "constant".to_owned(), mean: 0.1, deviation: 1.0 });
    assert!(rows(&table, Split::Val).iter().all(|(_, row)| row[1] == 0.0));
    // What an older version wrote, in f32, is read.
    let old: Column = serde_json::from_str("{\"name\":\"a\",\"mean\":0.3,\"deviation\":1700000000.0}").unwrap();
    assert_eq!((old.mean, old.deviation), (0.3, 1.7e9));
}

#[test]
fn rows_without_a_label_are_asked_about_and_not_counted() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("new.csv");
    let columns = [Column::plain("a")];
    let classes = ["x".to_owned(), "y".to_owned()];
    let open = |text: &str, unlabelled| {
        fs::write(&path, text).unwrap();
        Table::open_like(&path, "label", &columns, &classes, unlabelled)
    };
    for text in ["a,label\n5,\n6,?\n7,y\n", "label,a\n,5\n?,6\ny,7\n"] {
        let asked = open(text, Unlabelled::Keep).unwrap();
        assert_eq!(rows(&asked, Split::Val), [(0, vec![5.0]), (0, vec![6.0]), (1, vec![7.0])]);
        let counted = open(text, Unlabelled::LeaveOut).unwrap();
        assert_eq!(rows(&counted, Split::Val), [(1, vec![7.0])]);
        assert!(counted.name(Split::Val, 0).ends_with("line 4"));
    }
    for (text, words) in [
        ("a\n5\n", "no label column `label`"),
        ("a,label\n5,?\n", "no label in any of its 1 rows"),
        ("a,label,label\n5,x,y\n", "two columns named `label`"),
        ("a,a,label\n5,5,y\n", "two columns named `a`"),
        ("a,label\n", "no rows"),
        ("", "is empty"),
    ] {
        let error = open(text, Unlabelled::LeaveOut).err().expect("should be refused").to_string();
        assert!(error.contains(words), "{text:?}: {error}");
    }
    // Columns that the model does not need may have any names.
    assert!(open("b,b,a\n1,2,3\n", Unlabelled::Keep).is_ok());
    // A class may have any name.
    fs::write(&path, "a,label\n5,?\n").unwrap();
    let named = Table::open_like(&path, "label", &columns, &["!".to_owned(), "?".to_owned()], Unlabelled::LeaveOut).unwrap();
    assert_eq!(rows(&named, Split::Val), [(1, vec![5.0])]);
    let tiny = [Column { name: "a".to_owned(), mean: 0.0, deviation: 1e-30 }];
    fs::write(&path, "a\n1e20\n").unwrap();
    let error = Table::open_like(&path, "label", &tiny, &classes, Unlabelled::Keep).err().unwrap().to_string();
    assert!(error.contains("in line 2, column `a`, which no f32 holds"), "{error}");
}
