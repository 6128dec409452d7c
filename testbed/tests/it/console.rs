//! The console page of a cluster manager in a real Chromium: it shows what goes on, and what others wrote stays text.

use federation::message::Ad;
use federation::xmpp::Agent;
use serde_json::Value;
use testbed::browser::{Browser, play};

use super::stage::{LOOK, Order, PATIENCE, Stage, ad, federation_room};

/// It would run if the page took it for markup.
const HOSTILE: &str = "<img src=x onerror=\"window.hacked = 1\">";

/// Looks at the page until its text is as wanted.
async fn shows(browser: &Browser, what: &str, wanted: impl Fn(&str) -> bool) -> String {
    let patience = tokio::time::Instant::now() + PATIENCE;
    loop {
        let text = browser.run("return document.body.innerText").await.unwrap();
        if wanted(text.as_str().unwrap()) {
            return text.as_str().unwrap().to_owned();
        }
        assert!(tokio::time::Instant::now() < patience, "waited in vain for {what}: {text}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Of every part, as its cell tells: number, state, domain and percent.
async fn cells(browser: &Browser) -> Vec<String> {
    let titles = browser.run("return [...document.querySelectorAll('.cell')].map((cell) => cell.title)").await.unwrap();
    serde_json::from_value(titles).unwrap()
}

#[tokio::test]
async fn the_console_shows_domains_and_a_job_at_work_and_takes_nobodys_text_for_markup() {
    let stage = Stage::start(|options| {
        options.unmanned = vec!["c.test".into()];
        options.hosts = 1;
    })
    .await;
    let puppet = hostile_domain(&stage).await;
    let browser = Browser::start().await.unwrap();
    let console = &stage.domain(0).console_url;
    browser.open(console).await.unwrap();
    let text = shows(&browser, "the domains", |text| text.contains("c.test") && text.contains("No job yet")).await;
    assert!(text.contains("a.test (home)") && text.contains("b.test"), "{text}");
    assert!(text.contains(HOSTILE), "shown as it was written: {text}");

    // A job whose source has the hostile name fails, and the page says why.
    let escaped = HOSTILE.replace('<', "&lt;").replace('"', "&quot;");
    let failed = stage.ended(&Order::new(&escaped, "hostile")).await;
    assert!(failed.source.contains(HOSTILE), "{failed:?}");
    let text = shows(&browser, "the failure", |text| text.contains("source-missing")).await;
    assert!(text.contains(&format!("s3://films/{HOSTILE} → s3://films/hostile/")), "{text}");

    // A job at work: its progress grows under the eye, without the page being loaded again.
    let id = stage.submit(&Order::slow("shown")).await;
    let works = |cells: &[String]| cells.iter().any(|cell| cell.contains(": running at ") && !cell.contains(", 0 %"));
    stage.wait("a part at work on the page", async || works(&cells(&browser).await).then_some(())).await;
    shows(&browser, "the job", |text| text.contains(&format!("{id} · transcode · running"))).await;
    shows(&browser, "its load", |text| text.contains(&format!("{id} · direct: "))).await;
    let job = stage.ends_right(&id).await;
    let text = shows(&browser, "the end", |text| text.contains(&format!("{id} · transcode · done"))).await;
    assert!(text.contains("5 of 5 parts are there") && text.contains("Play"), "{text}");
    assert!(cells(&browser).await.iter().all(|cell| cell.contains(": verified at ")), "{text}");
    let drawn =
        "return [...document.querySelectorAll('img.timeline')].some((img) => img.complete && img.naturalWidth > 0)";
    stage.wait("the timeline", async || (browser.run(drawn).await.unwrap() == true).then_some(())).await;

    assert_eq!(browser.run("return window.hacked ?? null").await.unwrap(), Value::Null);
    assert_eq!(browser.run("return document.querySelectorAll('img:not(.timeline)').length").await.unwrap(), 0);
    assert_eq!(browser.console().await.unwrap(), Vec::<String>::new());
    // That the log would tell.
    browser.run("setTimeout(() => { throw new Error('on purpose') })").await.unwrap();
    let told = async || browser.console().await.unwrap().iter().any(|line| line.contains("on purpose")).then_some(());
    stage.wait("an error in the log", told).await;
    drop(browser);

    // The player page that the job's answer names plays all of it.
    let seen = play(&job.results.unwrap().player).await.unwrap();
    assert!(seen.ended && seen.frames == 240 && seen.sound_bytes > 0, "{seen:?}");
    puppet.close().await;
    stage.end().await;
}

/// A member of the federation that says hostile things of itself.
async fn hostile_domain(stage: &Stage) -> Agent {
    let (agent, mut events) = stage.manager("c.test");
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let ad = Ad { slots: 0, slots_free: 0, version: HOSTILE.into(), ..ad("c.test") };
    agent.join(&federation_room(), "c.test", Some(ad.into())).await.unwrap();
    agent
}
