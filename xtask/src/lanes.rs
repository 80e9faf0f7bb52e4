//! Runs guests, and fuzz targets, in parallel.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// A job for any thread that is free.
pub type Job<'a, T> = Box<dyn FnOnce() -> T + Send + 'a>;

/// Runs all jobs, one per CPU at a time. A fuzz target uses one CPU. Under emulation a guest uses little more
/// than one, and with KVM less. Starts them in their order, and returns the results in that order.
pub fn one_per_cpu<T: Send>(jobs: Vec<Job<'_, T>>) -> Vec<T> {
    side_by_side(jobs, thread::available_parallelism().map_or(1, usize::from))
}

fn side_by_side<T: Send>(jobs: Vec<Job<'_, T>>, width: usize) -> Vec<T> {
    let waiting = Mutex::new(jobs.into_iter().enumerate().collect::<VecDeque<_>>());
    let done = Mutex::new(Vec::new());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..width {
            scope.spawn(|| {
                while let Some((number, job)) = next() {
                    let result = (number, job());
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn two_jobs_run_at_a_time_and_results_keep_the_order() {
        let together = Barrier::new(2);
        let job = |number| -> Job<'_, i32> {
            let together = &together;
            Box::new(move || {
                // No job passes alone.
                together.wait();
                number
            })
        };
        assert_eq!(side_by_side((0..4).map(job).collect(), 2), [0, 1, 2, 3]);
    }
}
