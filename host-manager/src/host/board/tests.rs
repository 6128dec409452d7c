use super::*;

fn offer() -> Offer {
    Offer { name: "host1".into(), epoch: 1, slots: 2, backlog: 1, guests: 2 }
}

fn jid(resource: &str) -> FullJid {
    format!("cm@a.test/{resource}").parse().unwrap()
}

/// A board with a manager, and both guests up.
fn board() -> Board {
    let mut board = Board::new(offer());
    board.manager_seen(jid("one"), 1);
    board.guest_up(0);
    board.guest_up(1);
    board
}

fn status(task: &str, state: &str, percent: f32) -> Status {
    let (task, state) = (task.to_owned(), state.to_owned());
    Status { task, state, bytes: 0, percent, outputs: Vec::new(), usage: None, failure: None }
}

fn tells(actions: Vec<Action>) -> Vec<(u64, String)> {
    let tell = |action| match action {
        Action::Tell { token, status, .. } => Some((token, status.state)),
        _ => None,
    };
    actions.into_iter().filter_map(tell).collect()
}

fn starts(actions: &[Action]) -> Vec<(usize, &str)> {
    let start = |action| match action {
        &Action::Start { guest, ref task, .. } => Some((guest, task.as_str())),
        _ => None,
    };
    actions.iter().filter_map(start).collect()
}

#[test]
fn only_the_active_manager_is_obeyed() {
    let mut board = board();
    assert_eq!(board.run(&jid("stranger"), "t", "u".into()), Err(NotManager));
    board.manager_gone(Some(&jid("one")));
    assert_eq!(board.run(&jid("one"), "t", "u".into()), Err(NotManager));
    board.manager_seen(jid("two"), 2);
    board.manager_seen(jid("one"), 1); // a ghost of the old one
    assert_eq!(board.run(&jid("one"), "t", "u".into()), Err(NotManager));
    assert_eq!(board.run(&jid("two"), "t", "u".into()), Ok(true));
}

#[test]
fn tasks_spread_over_the_guests_and_the_one_too_many_is_refused() {
    let mut board = board();
    for task in ["a", "b", "c"] {
        board.run(&jid("one"), task, "u".into()).unwrap();
        board.run(&jid("one"), task, "u".into()).unwrap(); // a repeat takes no room
    }
    assert_eq!(board.run(&jid("one"), "d", "u".into()), Ok(false));
    let actions = board.poll(Millis(0));
    assert_eq!(starts(&actions), [(0, "a"), (1, "b"), (0, "c")]);
    assert!(starts(&board.poll(Millis(1))).is_empty(), "started twice");
    board.guest_says(Millis(2), 0, status("a", "done", 100.0), true);
    assert_eq!(board.run(&jid("one"), "d", "u".into()), Ok(true));
}

#[test]
fn free_slots_are_announced_at_once_when_they_change_and_else_every_few_seconds() {
    let mut board = board();
    let free = |actions: Vec<Action>| -> Vec<(u32, u64)> {
        let host = |action| match action {
            Action::Announce { host, .. } => Some((host.slots_free, host.seq)),
            _ => None,
        };
        actions.into_iter().filter_map(host).collect()
    };
    assert_eq!(free(board.poll(Millis(0))), [(2, 1)]);
    assert_eq!(free(board.poll(Millis(1))), []);
    board.run(&jid("one"), "a", "u".into()).unwrap();
    assert_eq!(free(board.poll(Millis(2))), [(1, 2)]);
    assert_eq!(free(board.poll(Millis(2 + ANNOUNCE_EVERY_MS))), [(1, 3)]);
}

#[test]
fn progress_is_throttled_but_a_change_of_state_is_not() {
    let mut board = board();
    board.run(&jid("one"), "t", "u".into()).unwrap();
    let sent = tells(board.poll(Millis(0)));
    assert_eq!(sent, [(1, "waiting".into())]);
    board.answered("t", 1, Fate::Settled);
    board.guest_says(Millis(10), 0, status("t", "running", 1.0), false);
    assert_eq!(tells(board.poll(Millis(10))), [(2, "running".into())]);
    board.answered("t", 2, Fate::Settled);
    board.guest_says(Millis(20), 0, status("t", "running", 2.0), false);
    assert!(tells(board.poll(Millis(20))).is_empty());
    assert_eq!(board.deadline(), Some(Millis(510)));
    assert_eq!(tells(board.poll(Millis(510))), [(3, "running".into())]);
}

#[test]
fn an_end_is_repeated_until_it_is_answered_and_the_guest_forgets_at_once() {
    let mut board = board();
    board.run(&jid("one"), "t", "u".into()).unwrap();
    board.poll(Millis(0));
    board.guest_says(Millis(5), 0, status("t", "done", 100.0), true);
    let forget = Action::Forget { guest: 0, task: "t".into() };
    assert!(board.poll(Millis(5)).contains(&forget));
    board.answered("t", 1, Fate::Lost); // that was `waiting`
    let mut now = Millis(5);
    for token in 2..6 {
        now = board.deadline().unwrap().max(now);
        while tells(board.poll(now)) != [(token, "done".into())] {
            now = board.deadline().unwrap().max(now.plus(1));
        }
        board.answered("t", token, Fate::Lost);
    }
    now = now.plus(REPEAT_MS_MAX);
    assert_eq!(tells(board.poll(now)).len(), 1);
    board.answered("t", 6, Fate::Settled);
    assert!(tells(board.poll(now.plus(60_000))).is_empty());
}

#[test]
fn a_new_manager_is_told_about_every_task_and_a_late_answer_of_the_old_one_changes_nothing() {
    let mut board = board();
    board.run(&jid("one"), "t", "u".into()).unwrap();
    board.poll(Millis(0));
    board.guest_says(Millis(1), 0, status("t", "done", 100.0), true);
    board.manager_seen(jid("two"), 2);
    let told = tells(board.poll(Millis(2)));
    assert_eq!(told, [(2, "done".into())]);
    board.answered("t", 1, Fate::Settled);
    board.answered("t", 2, Fate::Lost);
    assert_eq!(tells(board.poll(Millis(10_000))).len(), 1);
}

#[test]
fn a_task_whose_guest_dies_is_run_once_more_and_then_fails_for_a_retry_elsewhere() {
    let mut board = board();
    board.run(&jid("one"), "t", "u".into()).unwrap();
    assert_eq!(starts(&board.poll(Millis(0))), [(0, "t")]);
    board.guest_down(Millis(1), 0);
    board.guest_says(Millis(1), 0, status("t", "done", 100.0), true); // too late to be believed
    assert_eq!(starts(&board.poll(Millis(1))), [(1, "t")]);
    board.guest_down(Millis(2), 1);
    let entry = &board.tasks["t"];
    assert_eq!(entry.status.state, "failed");
    let failure = entry.status.failure.as_ref().unwrap();
    assert_eq!((failure.code.as_str(), failure.retryable), ("guest-lost", true));
}

#[test]
fn a_stopped_task_is_forgotten_here_and_in_its_guest() {
    let mut board = board();
    board.run(&jid("one"), "t", "u".into()).unwrap();
    board.poll(Millis(0));
    assert_eq!(board.stop(&jid("x"), "t"), Err(NotManager));
    assert_eq!(board.stop(&jid("one"), "t"), Ok(Some(Action::Forget { guest: 0, task: "t".into() })));
    assert_eq!(board.stop(&jid("one"), "t"), Ok(None));
    assert_eq!(board.active(), 0);
}

#[test]
fn ended_tasks_are_remembered_up_to_a_bound() {
    let mut board = board();
    for n in 0..ENDED_MAX + 10 {
        let (now, task) = (Millis(n as u64), format!("t{n:04}"));
        board.run(&jid("one"), &task, "u".into()).unwrap();
        let told = |actions: Vec<Action>| tells(actions)[0].0;
        let token = told(board.poll(now));
        board.answered(&task, token, Fate::Settled);
        let guest = board.tasks[&task].guest.unwrap();
        board.guest_says(now, guest, status(&task, "done", 100.0), true);
        let token = told(board.poll(now));
        board.answered(&task, token, Fate::Settled);
    }
    board.poll(Millis(1 << 20));
    assert_eq!(board.tasks.len(), ENDED_MAX);
    assert!(!board.tasks.contains_key("t0000"));
}
