/** A real Prometheus scrapes the daemon, the relay process and the webhook, and answers the panels of the dashboard. */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {readFileSync} from 'node:fs';
import {writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {setTimeout as delay} from 'node:timers/promises';
import {fileURLToPath} from 'node:url';
import test from 'ava';
import {directoryOf} from '../support/directory.ts';
import {freePort} from '../support/port.ts';
import {pool, startTestDriverHost} from '../support/test-driver-host.ts';
import {makeIssuer, MountedSecret} from '../webhook/harness.ts';
import {processOf} from './process.ts';

interface Dashboard {
	readonly rows: ReadonlyArray<{
		readonly panels: ReadonlyArray<{
			readonly title: string;
			readonly targets: ReadonlyArray<{readonly expr: string}>;
		}>;
	}>;
}
interface Answer {
	readonly status: string;
	readonly error?: string;
	readonly data?: {readonly result: ReadonlyArray<{readonly value: readonly [number, string]}>};
}

const dashboard = JSON.parse(
	readFileSync(fileURLToPath(new URL('../../deploy/monitoring/dashboard/peer-pods.json', import.meta.url)), 'utf8'),
) as Dashboard;
/** Prometheus asks this often: the least that it takes. */
const scrapeEvery = '1s';
/** Between two questions to Prometheus. It only knows more after a scrape. */
const askEveryMs = 200;

test('a real Prometheus scrapes all processes and answers every panel of the dashboard', async t => {
	const directory = await directoryOf(t);
	await using host = await startTestDriverHost(await directoryOf(t));
	const ports = {daemon: await freePort(), relay: await freePort(), webhook: await freePort(), own: await freePort()};
	const secret = new MountedSecret(join(directory, 'certs'));
	await secret.write(await (await makeIssuer()).issue());
	const env = {
		REMOTE_HYPERVISOR_ENDPOINT: join(directory, 'run/h.sock'),
		PODS_DIR: join(directory, 'p'),
		CLUSTER_ID: 'test',
		NODE_NAME: 'worker-0',
		LIBVIRT_URI: `test:///default?socket=${host.socketPath}`,
		LIBVIRT_POOL: pool,
		METRICS_PORT: String(ports.daemon),
		RELAY_METRICS_PORT: String(ports.relay),
		WEBHOOK_PORT: '0',
		WEBHOOK_PROBE_PORT: '0',
		WEBHOOK_CERT_DIR: secret.directory,
		WEBHOOK_METRICS_PORT: String(ports.webhook),
	};
	await processOf(t, 'relay', env).event('ready');
	await Promise.all(['libvirt', 'webhook'].map(async command => processOf(t, command, env).event('ready')));

	const job = (name: string, endpoint: string, port: number): string =>
		`{job_name: ${name}-${endpoint}, static_configs: [{targets: ['127.0.0.1:${port}'], labels: {job: ${name}, endpoint: ${endpoint}, node: worker-0}}]}`;
	const config = join(directory, 'prometheus.yml');
	await writeFile(
		config,
		`global: {scrape_interval: ${scrapeEvery}}
scrape_configs:
- ${job('osc-caa-metrics', 'daemon', ports.daemon)}
- ${job('osc-caa-metrics', 'relay', ports.relay)}
- ${job('peer-pods-webhook-metrics', 'metrics', ports.webhook)}
`,
	);
	const prometheus = spawn(
		'prometheus',
		[
			`--config.file=${config}`,
			`--storage.tsdb.path=${join(directory, 'data')}`,
			`--web.listen-address=127.0.0.1:${ports.own}`,
		],
		{stdio: 'ignore'},
	);
	const exited = once(prometheus, 'close');
	t.teardown(async () => {
		prometheus.kill('SIGKILL');
		await exited;
	});
	const ask = async (query: string): Promise<Answer> => {
		const response = await fetch(`http://127.0.0.1:${ports.own}/api/v1/query?query=${encodeURIComponent(query)}`);
		return (await response.json()) as Answer;
	};
	const values = async (query: string): Promise<readonly number[]> =>
		((await ask(query).catch(() => undefined))?.data?.result ?? []).map(({value: [, value]}) => Number(value));
	// Rates need two scrapes of each, and the pool and a round have to be seen.
	for (const query of ['up', 'rate(caa_cpu_seconds_total[1m])']) {
		while ((await values(query)).filter(value => value > 0).length < 3) {
			t.is(prometheus.exitCode, null);
			await delay(askEveryMs);
		}
	}

	for (const query of ['caa_pool_available_bytes', 'caa_reconcile_seconds_count > 0']) {
		while ((await values(query)).length === 0) {
			await delay(askEveryMs);
		}
	}

	const empty: string[] = [];
	for (const {title, targets} of dashboard.rows.flatMap(({panels}) => panels)) {
		for (const {expr} of targets) {
			const {status, error, data} = await ask(expr);
			t.is(status, 'success', `${title}: ${String(error)}`);
			if (data?.result.length === 0) {
				empty.push(title);
			}
		}
	}

	// What nothing has happened for yet: no pod was started, no agent was called.
	t.deepEqual(new Set(empty).difference(new Set(withoutPods)), new Set());
	t.deepEqual(await values('caa_libvirt_connected'), [1]);
	t.deepEqual(await values('count by (component) (caa_build_info)'), [1, 1, 1]);
});

const withoutPods = [
	'Failed starts in 15 minutes, by stage and reason',
	'Agent calls per second',
	'Bytes per second',
	'Duration of agent calls, 95 %',
	'Duration of the stages of starts, median',
	'Failed libvirt calls in 15 minutes',
];
