//! profanity, a console client that others wrote, in a terminal of tmux's: what a person with it sees of the Shell room.
//!
//! It trusts what OpenSSL trusts by default, so `SSL_CERT_FILE` gives it the domain's own certificate authority, as it does
//! go-sendxmpp.

use super::stage::{Order, Stage};
use super::terminal::Terminal;

/// profanity, about to log in as the domain's client, over TLS or not at all. `trust`: whether it knows the domain's authority.
fn profanity(stage: &Stage, trust: bool) -> Terminal {
    let access = stage.domain(0);
    let dir = stage.state().with_file_name(if trust { "trusting" } else { "careful" });
    let settings = dir.join("data/profanity");
    std::fs::create_dir_all(&settings).unwrap();
    let account = format!(
        "[home]\nenabled=true\njid={}\nserver={}\nport={}\npassword={}\nresource=profanity\nmuc.nick=reader\ntls.policy=force\n",
        access.client.jid, access.xmpp_host, access.xmpp_port, access.client.password
    );
    std::fs::write(settings.join("accounts"), account).unwrap();
    let (dir, ca) = (dir.display(), access.ca_file.display());
    let ca = if trust { format!("SSL_CERT_FILE={ca}") } else { String::new() };
    let places = format!("XDG_CONFIG_HOME={dir}/config XDG_DATA_HOME={dir}/data");
    let command = format!("exec env {ca} {places} profanity -a home -f {dir}/profanity.log");
    Terminal::open(&settings, 220, &command)
}

#[tokio::test]
async fn a_person_with_profanity_pastes_a_job_and_hears_of_its_result_in_private() {
    let stage = Stage::of(1, 1, 2).await;
    // That the other one comes in is not because nobody looks at the certificate.
    profanity(&stage, false).shows("TLS certificate verification failed").await;

    let terminal = profanity(&stage, true);
    terminal.shows("logged in successfully").await;
    terminal.line(&format!("/join {}", stage.domain(0).shell_room));
    terminal.shows("You have joined the room as reader").await;
    // It sends each of the lines by itself.
    terminal.paste(&Order::new("film.mp4", "pasted").xml().replace("><", ">\n  <"));
    let room = terminal.shows("is taken; I tell you in private how it goes").await;
    let id = room.split_whitespace().find(|word| word.starts_with("j-")).unwrap_or_else(|| panic!("{room}")).to_owned();
    stage.ends_right(&id).await;
    // The third window is the private talk with the cluster manager.
    terminal.line("/win 3");
    let said = terminal.shows("DASH http").await;
    assert!(said.contains(&format!("{id}: done, 5 of 5 parts done")), "{said}");
    assert!(["player http", "SMIL http", "HLS http"].iter().all(|word| said.contains(word)), "{said}");
    terminal.line("/win 2");
    let room = terminal.shows("is taken").await;
    assert!(!room.contains("HLS"), "the addresses are nobody else's business: {room}");
    drop(terminal); // while its socket is there
    stage.end().await;
}
