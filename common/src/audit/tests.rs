use super::*;
use crate::plan::owned_shards;
use crate::seed;

/// The record of a run of `steps` steps that loses its ring at random.
struct Story {
    plan: Plan,
    steps: u64,
    committed: Vec<Committed>,
    starts: Vec<(u64, u64)>,
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
        story.starts.push((generation, step));
        let world = 1 + seed::below(&mut rng, shards);
        loop {
            let plan = &story.plan;
            let at = plan.position(step);
            let taken = |shard| plan.shard_order(at.epoch, shard)[plan.span(at.step_in_epoch, shard)].to_vec();
            let ids: Vec<Vec<u32>> = (0..world).map(|rank| owned_shards(rank, world, shards).flat_map(taken).collect()).collect();
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
        let generation = committed_in(&s.starts, step);
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
        .find(|&i| s.trained[i].generation == committed_in(&s.starts, s.trained[i].step) && !s.trained[i].ids.is_empty())
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
    let line = story.trained.iter().find(|t| committed_in(&story.starts, t.step) == t.generation).cloned();
    let line = line.unwrap_or_else(|| unreachable!("some step was reported of"));
    story.committed.iter_mut().filter(|c| c.step == line.step).for_each(|c| c.checksum = Some(1));
    let honest = check(&story);
    story.trained.push(TrainedSamples { ids: vec![0; 3], skipped: vec![1, 2], ..line });
    assert_eq!(check(&story), honest);
}
