//! The report on a trained perceptron: its number of updates compared with the bound of
//! the convergence theorem (Novikoff, "On Convergence Proofs for Perceptrons", 1962),
//! or that no hyperplane separates the data.

use std::fmt::Write;

/// A sample in the theorem's form: features, and the class as -1 or 1.
pub type Point = (Vec<f64>, f64);

/// The radius and the margin of the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// r: the largest length of a sample.
    pub radius: f64,
    /// A ρ for which some (w, b) of length 1 has y (w x + b) ≥ ρ on all samples;
    /// not positive if none was found.
    pub margin: f64,
    /// No ρ is larger than this; 0 proves that nothing separates the data.
    pub margin_limit: f64,
}

/// The most multiplications that the search for the margin may take.
const SEARCH: usize = 400_000_000;
/// The search ends when the margin and its limit differ by at most this share.
const CLOSE: f64 = 0.005;
/// A margin limit below this share of the radius counts as zero, since sums of f64 are
/// rounded.
const ZERO: f64 = 1e-9;

impl Geometry {
    /// The largest margin is the distance of 0 from the convex hull of the samples
    /// y (x, 1). Gilbert, "An Iterative Procedure for Computing the Minimum of a
    /// Quadratic Form on a Convex Set", 1966: from a point of the hull, step towards
    /// the sample that has the least dot product with it.
    pub fn of(points: &[Point]) -> Self {
        let radius = points.iter().map(|(x, _)| dot(x, x).sqrt()).fold(0.0, f64::max);
        let signed: Vec<Vec<f64>> = points.iter().map(|(x, y)| x.iter().chain([&1.0]).map(|v| y * v).collect()).collect();
        let Some(width) = signed.first().map(Vec::len) else { return Self { radius, margin: 0.0, margin_limit: 0.0 } };
        let n = signed.len() as f64;
        let mut hull: Vec<f64> = (0..width).map(|i| signed.iter().map(|p| p[i]).sum::<f64>() / n).collect();
        let mut best = Self { radius, margin: f64::NEG_INFINITY, margin_limit: f64::INFINITY };
        for _ in 0..(SEARCH / (signed.len() * width)).max(10) {
            let length = dot(&hull, &hull).sqrt();
            best.margin_limit = best.margin_limit.min(length);
            if length <= ZERO * (1.0 + radius) {
                return Self { margin: best.margin.min(0.0), margin_limit: 0.0, ..best };
            }
            let least = signed.iter().map(|p| (dot(p, &hull), p)).min_by(|a, b| a.0.total_cmp(&b.0));
            let Some((product, towards)) = least else { break };
            best.margin = best.margin.max(product / length);
            if best.margin >= (1.0 - CLOSE) * best.margin_limit {
                break;
            }
            let step: Vec<f64> = towards.iter().zip(&hull).map(|(t, h)| t - h).collect();
            let share = (-dot(&hull, &step) / dot(&step, &step)).clamp(0.0, 1.0);
            hull.iter_mut().zip(&step).for_each(|(h, s)| *h += share * s);
        }
        best
    }

    /// The theorem's bound on the number of updates.
    pub fn bound(&self) -> Option<f64> {
        (self.margin > 0.0).then(|| (self.radius.powi(2) + 1.0) / self.margin.powi(2))
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// More samples than this are not listed.
const LISTED: usize = 16;

/// The report on a perceptron with weights `w` and `b` after `updates` updates
/// in `epochs` epochs. `names` are those of the features and of the two classes.
pub fn report(points: &[Point], w: &[f64], b: f64, updates: u64, epochs: u64, names: (&[String], &[String])) -> String {
    let geometry = Geometry::of(points);
    let score = |x: &[f64]| dot(w, x) + b;
    let wrong = points.iter().filter(|(x, y)| y * score(x) <= 0.0).count();
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "perceptron: {updates} updates in {epochs} epochs; ");
    if wrong == 0 {
        let _ = writeln!(text, "every training sample is right");
        // The perceptron's own line has a margin too, which may be the largest one known.
        let own = points.iter().map(|(x, y)| y * score(x)).fold(f64::INFINITY, f64::min) / (dot(w, w) + b * b).sqrt();
        let geometry = Geometry { margin: geometry.margin.max(own), ..geometry };
        if let Some(bound) = geometry.bound() {
            let _ = writeln!(
                text,
                "  radius r = {:.4}, margin ρ = {:.4}: the convergence theorem allows at most (r² + 1)/ρ² = {:.0} updates",
                geometry.radius, geometry.margin, bound
            );
        }
    } else {
        let _ = writeln!(text, "{wrong} of {} training samples are wrong", points.len());
        if geometry.margin_limit == 0.0 {
            let _ = writeln!(
                text,
                "  no line separates the data: a mean of y (x, 1) over samples is 0, and a line would have it on its positive side"
            );
        } else if geometry.margin > 0.0 {
            let _ = writeln!(
                text,
                "  a line does separate the data, with margin ρ = {:.2e}: at most {:.0} updates find one; raise train.max_epochs",
                geometry.margin,
                geometry.bound().unwrap_or(f64::INFINITY)
            );
        } else {
            let _ = writeln!(
                text,
                "  no line was found that separates the data; none has a margin above {:.2e} (radius {:.3})",
                geometry.margin_limit, geometry.radius
            );
        }
    }
    if points.len() <= LISTED {
        let (features, classes) = names;
        let _ = writeln!(text, "  {}  class  w x + b", features.iter().map(|f| format!("{f:>8}")).collect::<Vec<_>>().join(" "));
        for (x, y) in points {
            let values: Vec<String> = x.iter().map(|v| format!("{v:>8.3}")).collect();
            let class = classes.get(usize::from(*y > 0.0)).map_or("", String::as_str);
            let verdict = if y * score(x) > 0.0 { "" } else { "  wrong" };
            let _ = writeln!(text, "  {}  {class:>5}  {:>7.3}{verdict}", values.join(" "), score(x));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use common::seed;

    use super::*;

    fn xor() -> Vec<Point> {
        [(0.0, 0.0, -1.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, -1.0)].map(|(a, b, y)| (vec![a, b], y)).to_vec()
    }

    #[test]
    fn xor_is_proved_inseparable() {
        let geometry = Geometry::of(&xor());
        assert_eq!((geometry.margin_limit, geometry.bound()), (0.0, None));
        let text = report(&xor(), &[0.0, 0.0], 0.0, 40, 10, (&["x1".into(), "x2".into()], &["0".into(), "1".into()]));
        assert!(text.contains("no line separates the data") && text.matches("wrong\n").count() >= 4, "{text}");
    }

    #[test]
    fn the_margin_of_two_points_is_known() {
        // y (x, 1) are (2, 1) and (2, -1): the hull's nearest point to 0 is (2, 0).
        let geometry = Geometry::of(&[(vec![2.0], 1.0), (vec![-2.0], -1.0)]);
        assert!((geometry.margin - 2.0).abs() < 0.02 && (geometry.margin_limit - 2.0).abs() < 0.02, "{geometry:?}");
        assert!((geometry.bound().unwrap_or(0.0) - 5.0 / 4.0).abs() < 0.03);
    }

    /// The classic rule, written as the course notes have it.
    fn classic(points: &[Point]) -> (Vec<f64>, f64, u64) {
        let (mut w, mut b, mut updates) = (vec![0.0; points[0].0.len()], 0.0, 0);
        loop {
            let before = updates;
            for (x, y) in points {
                if y * (dot(&w, x) + b) <= 0.0 {
                    w.iter_mut().zip(x).for_each(|(w, x)| *w += y * x);
                    b += y;
                    updates += 1;
                }
            }
            if updates == before {
                return (w, b, updates);
            }
        }
    }

    #[test]
    fn updates_stay_under_the_bound_over_many_seeds() {
        for case in 0..500u64 {
            let mut rng = seed::stream(case, "perceptron test", &[]);
            let features = 1 + seed::below(&mut rng, 6) as usize;
            let normal: Vec<f64> = (0..features).map(|_| f64::from(seed::normal(&mut rng))).collect();
            let offset = 0.3 * f64::from(seed::normal(&mut rng));
            let point = |rng: &mut _| {
                let x: Vec<f64> = (0..features).map(|_| f64::from(seed::normal(rng))).collect();
                let side = dot(&normal, &x) + offset;
                (side.abs() > 0.1).then(|| (x, side.signum()))
            };
            let points: Vec<Point> = (0..60).filter_map(|_| point(&mut rng)).collect();
            if points.is_empty() {
                continue;
            }
            let (_, _, updates) = classic(&points);
            let geometry = Geometry::of(&points);
            let bound = geometry.bound().unwrap_or(0.0);
            assert!(updates as f64 <= bound, "case {case}: {updates} updates, bound {bound}");
            assert!(geometry.margin <= geometry.margin_limit * 1.0001, "{geometry:?}");
        }
    }
}
