//! How a domain loads its share of a job into its guests.

use cluster_manager::config::{Overlay, OverlayMode};
use cluster_manager::view::JobDoc;
use serde_json::Value;
use testbed::s3::{Faults, S3Server, S3ServerConfig};

use super::stage::{LOOK, Order, PATIENCE, Stage};

/// What leaves the store of so short a film, read once, beside the first bytes that home reads: itself, and again what two parts need both.
const ONCE: std::ops::Range<f64> = 0.9..1.3;

/// Two domains with two guests each, which load so; answers the job, how often each byte of the film left the
/// store, how often each order was read, and what `/api/loads` told of guests meanwhile.
async fn job_with(overlay: Overlay) -> (JobDoc, f64, f64, Vec<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let config = S3ServerConfig { root: dir.path().join("s3"), ..S3ServerConfig::default() };
    let secret = dir.path().join("secret");
    std::fs::write(&secret, config.secret_key.expose()).unwrap();
    let s3 = S3Server::start(config).await.unwrap();
    let keys = s3.client();
    let stage = Stage::start_with_keys(Some(keys.clone()), |options| {
        options.domains.truncate(2);
        (options.hosts, options.slots) = (2, 1);
        options.store.s3_endpoint = Some(s3.endpoint());
        options.store.s3_access_key = keys.access_key.clone();
        options.store.s3_secret_key_file = Some(secret.clone());
        options.overlay = overlay;
    })
    .await;
    let read = || s3.counters().get_bytes_of.get("/films/film.mp4").copied().unwrap_or(0);
    let before = read();
    let id = stage.submit(&Order::new("film.mp4", "shared")).await;
    let (mut told, http) = (Vec::new(), storage::fetch::http().no_proxy().build().unwrap());
    let look = async {
        loop {
            for domain in [0, 1].map(|n| stage.domain(n)) {
                let loads = http.get(format!("{}/api/loads", domain.console_url)).send().await.unwrap();
                let loads: Vec<Value> = loads.json().await.unwrap();
                told.extend(loads.iter().flat_map(|load| load["nodes"].as_array().unwrap().clone()));
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let job = tokio::select! {
        job = stage.end_of(&id) => job,
        () = look => unreachable!(),
    };
    let film = super::stage::film_bytes().len() as u64;
    let copies = (read() - before - film.min(storage::film::probe::HEAD_BYTES)) as f64 / film as f64;
    stage.is_right(&job).await;
    stage.end().await;
    // Orders of video are about equally long, and each is read at least once.
    let of_video = |key: &String| key.contains("/order-") && !key.contains("/order-00004-");
    let orders: Vec<_> = s3.counters().get_bytes_of.into_iter().filter(|(key, _)| of_video(key)).collect();
    let bytes = || orders.iter().map(|(_, bytes)| *bytes as f64);
    let reads = bytes().fold(0.0, f64::max) / bytes().fold(f64::INFINITY, f64::min);
    (job, copies, reads, told)
}

fn ways(job: &JobDoc) -> Vec<&str> {
    job.usage.iter().map(|used| used.loaded.as_deref().expect("every domain says how it loaded")).collect()
}

#[tokio::test]
async fn where_the_store_admits_few_requests_one_reads_the_share_and_the_swarm_spreads_it() {
    let (job, copies, _, told) = job_with(Overlay { origin_streams: Some(2), ..Overlay::default() }).await;
    let overlay = "overlay: the store admits 2 requests at a time, 2 guests want 8";
    assert!(ways(&job).contains(&overlay), "{:?}", ways(&job));
    assert!(ONCE.contains(&copies), "each byte is read once, by one: {copies}");
    let count = |node: &Value, key: &str| node[key].as_u64().unwrap();
    let has_some = |node: &&Value| count(node, "bytes") > 0 && count(node, "sources") > 0 && node["state"] != "waiting";
    let node = told.iter().find(has_some).unwrap_or_else(|| panic!("{told:?}"));
    assert_eq!(count(node, "bytes"), count(node, "from_peers") + count(node, "from_origin"), "{node}");
}

#[tokio::test]
async fn where_nothing_is_common_and_nothing_limited_guests_read_for_themselves() {
    let (job, copies, reads, told) = job_with(Overlay::default()).await;
    assert!(ways(&job).iter().all(|way| way.starts_with("direct: ")), "{:?}", ways(&job));
    assert!(ONCE.contains(&copies), "{copies}");
    assert!((1.0..1.5).contains(&reads), "only guests read orders: {reads}");
    assert!(told.is_empty(), "there is no swarm: {told:?}");
    let (job, ..) = job_with(Overlay { mode: OverlayMode::Never, origin_streams: Some(1), ..Overlay::default() }).await;
    assert!(ways(&job).iter().all(|way| *way == "direct: the overlay is switched off"), "{:?}", ways(&job));
}

#[tokio::test]
async fn a_store_that_puts_requests_off_is_found_out_and_the_next_job_spares_it() {
    let stage = Stage::start(|options| {
        options.domains.truncate(1);
        (options.hosts, options.slots) = (2, 1);
        options.store.faults = Faults { refuse_share: 0.33, fault_seed: 7, ..Faults::default() };
    })
    .await;
    let mut targets = (0..).map(|n| format!("put-off-{n}"));
    let sparing = async {
        loop {
            let job = stage.done(&Order::new("film.mp4", &targets.next().unwrap())).await;
            if ways(&job).iter().any(|way| way.starts_with("overlay: the store put off ")) {
                return job;
            }
        }
    };
    let job = tokio::time::timeout(PATIENCE, sparing).await.expect("it is found out");
    let target = job.target.trim_start_matches("s3://films/").trim_end_matches('/').to_owned();
    stage.is_right_when_copied(&target).await;
    stage.end().await;
}
