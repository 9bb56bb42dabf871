use super::*;
use crate::seed;

/// The record of a run of `steps` steps that loses its ring at random.
struct Story {
    plan: Plan,
    steps: u64,
    committed: Vec<Committed>,
    starts: Vec<GenerationStart>,
    trained: Vec<TrainedSamples>,
}

fn story(case: u64) -> Story {
    let mut rng = seed::stream(case, "audit", &[]);
    let shards = 2 + seed::below(&mut rng, 4);
    let plan = Plan::new(case, 20 + seed::below(&mut rng, 60), shards, shards * 3);
    let steps = plan.steps_per_epoch() * 2 + u64::from(seed::below(&mut rng, 3));
    let mut story = Story { plan, steps, committed: Vec::new(), starts: Vec::new(), trained: Vec::new() };
    let (mut step, mut generation) = (0, 0);
    while step < steps {
        generation += 1;
        let world = 1 + seed::below(&mut rng, shards);
        let mut counts = vec![1; world as usize];
        (world..shards).for_each(|_| counts[seed::below(&mut rng, world) as usize] += 1);
        let ownership = Ownership::of(&counts, world as usize, shards).unwrap_or_else(|e| panic!("{counts:?}: {e}"));
        // A damaged journal does not say who owned what.
        let recorded = (seed::below(&mut rng, 9) > 0).then(|| ownership.clone());
        story.starts.push(GenerationStart { generation, first_step: step, ownership: recorded });
        loop {
            let plan = &story.plan;
            let at = plan.position(step);
            let taken = |shard| plan.shard_order(at.epoch, shard)[plan.span(at.step_in_epoch, shard)].to_vec();
            let ids: Vec<Vec<u32>> = (0..world).map(|rank| ownership.range(rank).flat_map(taken).collect()).collect();
            let lost = seed::below(&mut rng, 6) == 0;
            for (rank, ids) in (0..).zip(&ids) {
                // Some workers die before they report the step, whether it was
                // committed or not.
                if seed::below(&mut rng, 8) > 0 {
                    story.trained.push(TrainedSamples { generation, step, rank, ids: ids.clone(), skipped: Vec::new() });
                }
            }
            if lost {
                break;
            }
            let sum = ids.iter().fold(0u64, |sum, ids| sum.wrapping_add(checksum(ids)));
            story.committed.push(Committed { step, samples: ids.concat().len() as u64, checksum: Some(sum) });
            step += 1;
            if step == steps {
                break;
            }
        }
    }
    story
}

fn check(s: &Story) -> AuditReport {
    audit(&s.plan, s.steps, &s.committed, &s.starts, &s.trained)
}

#[test]
fn honest_runs_are_clean_whatever_was_lost_on_the_way() {
    for case in 0..500 {
        let story = story(case);
        let report = check(&story);
        assert_eq!(report.findings, [], "case {case}");
        assert!(report.whole_epochs >= 2);
    }
}

#[test]
fn every_kind_of_wrong_is_found_and_named() {
    for case in 0..200 {
        let mut s = story(case);
        let step = s.steps / 2;
        let at = step as usize;
        // One sample replaced by another.
        let generation = number(committed_in(&s.starts, step));
        let reported: Vec<usize> =
            (0..s.trained.len()).filter(|&i| s.trained[i].step == step && s.trained[i].generation == generation).collect();
        let complete = reported.iter().map(|&i| s.trained[i].ids.len() as u64).sum::<u64>() == s.committed[at].samples;
        if let Some(&line) = reported.iter().find(|&&i| !s.trained[i].ids.is_empty()) {
            let id = s.trained[line].ids[0];
            let other = (id + 1) % s.plan.samples();
            s.trained[line].ids[0] = other;
            let sum = s.committed[at].checksum.unwrap_or_default();
            s.committed[at].checksum = Some(sum.wrapping_sub(checksum(&[id])).wrapping_add(checksum(&[other])));
            let report = check(&s);
            let [Finding::Samples { step: found, missing, twice, foreign }] = report.findings.as_slice() else {
                panic!("case {case}: {:?}", report.findings);
            };
            assert_eq!(*found, step);
            assert!(missing.contains(&id));
            assert!(twice.contains(&other) || foreign.contains(&other) || !complete, "case {case}");
        }
        let mut s = story(case);
        s.committed[at].samples -= 1;
        assert!(matches!(check(&s).findings.as_slice(), [Finding::Samples { .. }]));
        let mut s = story(case);
        s.committed.remove(at);
        assert_eq!(check(&s).findings, [Finding::NotRecorded { first: step, last: step }]);
        // A damaged line that claims a step far away does not take years to check.
        let mut s = story(case);
        let end = s.steps;
        s.steps = u64::MAX;
        s.committed[at].step = u64::MAX - 1;
        let gaps = [Finding::NotRecorded { first: step, last: step }, Finding::NotRecorded { first: end, last: u64::MAX - 2 }];
        assert!(check(&s).findings.starts_with(&gaps), "case {case}");
        let mut s = story(case);
        let again = s.committed[at];
        s.committed.push(again);
        assert_eq!(check(&s).findings, [Finding::RecordedTwice { step }]);
        let mut s = story(case);
        s.committed[at].checksum = None;
        assert_eq!(check(&s).findings, [Finding::NoChecksum { step }]);
    }
}

#[test]
fn what_was_skipped_with_a_word_is_listed_and_no_finding() {
    let mut s = story(3);
    let line = (0..s.trained.len())
        .find(|&i| s.trained[i].generation == number(committed_in(&s.starts, s.trained[i].step)) && !s.trained[i].ids.is_empty())
        .unwrap_or_default();
    let step = s.trained[line].step;
    let id = s.trained[line].ids.remove(0);
    s.trained[line].skipped.push(id);
    let place = step as usize;
    s.committed[place].samples -= 1;
    s.committed[place].checksum = s.committed[place].checksum.map(|sum| sum.wrapping_sub(checksum(&[id])));
    let report = check(&s);
    assert_eq!((report.findings.as_slice(), report.skipped.as_slice()), (&[][..], &[(step, id)][..]));
}

#[test]
fn what_a_rank_says_again_of_a_step_takes_nothing_back() {
    let mut story = (0..).map(story).find(|s| s.trained.len() > 4).unwrap_or_else(|| unreachable!());
    // The recorded sum is wrong, so that the lines decide the finding.
    let line = story.trained.iter().find(|t| number(committed_in(&story.starts, t.step)) == t.generation).cloned();
    let line = line.unwrap_or_else(|| unreachable!("some step was reported of"));
    story.committed.iter_mut().filter(|c| c.step == line.step).for_each(|c| c.checksum = Some(1));
    let honest = check(&story);
    story.trained.push(TrainedSamples { ids: vec![0; 3], skipped: vec![1, 2], ..line });
    assert_eq!(check(&story), honest);
}

/// Two ranks that exchange their shards train on the plan's samples, and not on their own.
#[test]
fn a_rank_that_trains_on_the_shards_of_another_is_named() {
    let mut found = 0;
    for case in 0..200 {
        let mut s = story(case);
        let line = |rank| {
            let of_rank =
                |t: &TrainedSamples| t.rank == rank && number(committed_in(&s.starts, t.step)) == t.generation && !t.ids.is_empty();
            (0..s.trained.len()).rev().find(|&i| of_rank(&s.trained[i]))
        };
        let (Some(one), Some(other)) = (line(0), line(1)) else { continue };
        let step = s.trained[one].step;
        let known = committed_in(&s.starts, step).is_some_and(|start| start.ownership.is_some());
        if s.trained[other].step != step || step >= s.steps || !known {
            continue;
        }
        let ids = std::mem::take(&mut s.trained[one].ids);
        s.trained[one].ids = std::mem::replace(&mut s.trained[other].ids, ids.clone());
        let report = check(&s);
        let [Finding::Owner { rank: 0, missing, foreign, .. }, Finding::Owner { rank: 1, .. }] = report.findings.as_slice() else {
            panic!("case {case}: {:?}", report.findings);
        };
        let sorted = |mut ids: Vec<u32>| {
            ids.sort_unstable();
            ids
        };
        assert_eq!((missing, foreign), (&sorted(ids), &sorted(s.trained[one].ids.clone())), "case {case}");
        found += 1;
    }
    assert!(found > 50, "only {found} cases had two ranks to exchange");
}
