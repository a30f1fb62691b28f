//! The table of subscriptions: lookups hot and cold, by depth of wildcards and by size, and changes.

mod item;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main,
};
use midge::subject::sublist::Sublist;
use std::hint::black_box;

fn table(patterns: impl Iterator<Item = String>) -> Sublist {
    let mut sublist = Sublist::new(1);
    for (member, pattern) in patterns.enumerate() {
        sublist.insert(pattern.as_bytes(), None, member as u32, 1);
    }
    sublist
}

/// Numbers in an order that is no help to caches.
fn shuffled(count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |n| n * 7919 % count)
}

fn find_all(sublist: &mut Sublist, subjects: &[String]) -> usize {
    let (mut found, mut total) = (Vec::new(), 0);
    for subject in subjects {
        sublist.matches(black_box(subject.as_bytes()), &mut found);
        total += found.len();
    }
    total
}

/// Lookups of subjects that have a subscription each: the same few again and again, or all in turn.
fn hot_and_cold(
    group: &mut BenchmarkGroup<'_, WallTime>,
    size: usize,
    pattern: impl Fn(usize) -> String,
    subject: impl Fn(usize) -> String,
) {
    let mut sublist = table((0..size).map(pattern));
    let cold: Vec<String> = shuffled(size).map(subject).collect();
    for (name, subjects) in [("hot", &cold[..size.min(8)]), ("cold", &cold[..])] {
        group.sample_size(if subjects.len() > 10_000 { 10 } else { 100 });
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            item::time(bencher, subjects.len(), || {
                assert_eq!(find_all(&mut sublist, subjects), subjects.len());
            });
        });
    }
}

fn literal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("match/literal");
    for size in [1, 1000, 100_000, 1_000_000] {
        let name = |n| format!("b.{n:06}");
        hot_and_cold(&mut group, size, name, name);
    }
    group.finish();
}

/// As many patterns, of which each subject finds its own.
fn patterns(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("match/patterns");
    for size in [1000, 100_000, 1_000_000] {
        let (pattern, subject) = (|n| format!("b.{n:06}.*"), |n| format!("b.{n:06}.x"));
        hot_and_cold(&mut group, size, pattern, subject);
    }
    group.finish();
}

/// One subscription with a wildcard in each token but the first, or `>` behind so many tokens.
fn wildcards(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("match/wildcard");
    for depth in [1, 2, 4, 8, 16] {
        let tokens: Vec<String> = (0..=depth).map(|n| format!("t{n}")).collect();
        let subject = tokens.join(".");
        let stars = format!("t0{}", ".*".repeat(depth));
        let rest = format!("{}.>", tokens[..depth].join("."));
        for (name, pattern) in [("star", stars), ("rest", rest)] {
            let mut sublist = table(std::iter::once(pattern));
            let mut found = Vec::new();
            group.bench_function(BenchmarkId::new(name, depth), |bencher| {
                bencher.iter(|| sublist.matches(black_box(subject.as_bytes()), &mut found));
                assert_eq!(found.len(), 1);
            });
        }
    }
    // Ten thousand patterns of which three match.
    let many = (0..10_000).map(|n| format!("a.{n}.*.c"));
    let mut sublist = table(many.chain(["a.>".into(), "*.77.b.c".into()]));
    let mut found = Vec::new();
    group.bench_function("10000-patterns", |bencher| {
        bencher.iter(|| sublist.matches(black_box(b"a.77.b.c"), &mut found));
        assert_eq!(found.len(), 3);
    });
    group.finish();
}

/// SUB and UNSUB, in a table of that size.
fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("match/change");
    for size in [1000, 1_000_000] {
        let mut sublist = table((0..size).map(|n| format!("b.{n:06}")));
        let mut number = 0u32;
        group.bench_function(BenchmarkId::new("insert-and-remove", size), |bencher| {
            bencher.iter_batched(
                || {
                    number += 1;
                    format!("c.{number}")
                },
                |pattern| {
                    let (place, queue) = sublist.insert(pattern.as_bytes(), None, number_of(), 1);
                    sublist.remove(place, queue);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn number_of() -> u32 {
    black_box(7)
}

criterion_group!(benches, literal, patterns, wildcards, changes);
criterion_main!(benches);
