/** deploy/monitoring: what Prometheus is to scrape is served; alerts and dashboard ask for metrics that exist. */
import {mkdtempSync, readFileSync, writeFileSync} from 'node:fs';
import {rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import type {ConfigMap, Service} from 'kubernetes-types/core/v1.js';
import type {NetworkPolicy} from 'kubernetes-types/networking/v1.js';
import {stringify} from 'yaml';
import {webhookSettings} from '../../src/cli/webhook-settings.ts';
import {relaySettings} from '../../src/cli/relay-settings.ts';
import {loadSettings} from '../../src/config/config.ts';
import {settings} from '../../src/config/settings.ts';
import {promtool} from '../metrics/promtool.ts';
import {build, containersOf, deployDirectory, ofKind, samples, workloads, type Manifest} from './manifests.ts';
import {nameOf} from './types.ts';

interface Rule {
	readonly alert: string;
	readonly expr: string;
	readonly for?: string;
	readonly annotations: Readonly<Record<string, string>>;
}
type PrometheusRule = Manifest & {spec: {groups: Array<{name: string; rules: Rule[]}>}};
type ServiceMonitor = Manifest & {
	spec: {selector: {matchLabels: Record<string, string>}; endpoints: Array<{port: string; path: string}>};
};
interface Dashboard {
	readonly title: string;
	readonly rows: ReadonlyArray<{
		readonly panels: ReadonlyArray<{
			readonly type: string;
			readonly title: string;
			readonly targets: ReadonlyArray<{readonly expr: string}>;
		}>;
	}>;
}

const repository = join(deployDirectory, '..');
const everything = (async () => [
	...(await build('overlays/openshift')),
	...(await build('overlays/monitoring-openshift')),
])();
const dashboardText = readFileSync(join(deployDirectory, 'monitoring/dashboard/peer-pods.json'), 'utf8');
const dashboard = JSON.parse(dashboardText) as Dashboard;
const queries = dashboard.rows.flatMap(({panels}) => panels).flatMap(({targets}) => targets.map(({expr}) => expr));
const metrics = new Set(
	[
		...readFileSync(join(repository, 'docs/metrics.md'), 'utf8').matchAll(
			/^\| `(?<name>caa_\w+)` \| (?<type>\w+)/gmv,
		),
	].flatMap(({groups: {name = '', type = ''} = {}}) =>
		type === 'histogram' ? ['_bucket', '_sum', '_count'].map(suffix => `${name}${suffix}`) : [name],
	),
);

async function rules(): Promise<PrometheusRule['spec']> {
	const [{spec} = {spec: {groups: []}}] = ofKind<PrometheusRule>(await everything, 'PrometheusRule');
	return spec;
}

function unknownMetrics(exprs: readonly string[]): string[] {
	return exprs
		.flatMap(expr => [...expr.matchAll(/\bcaa_\w+/gv)].map(([name]) => name))
		.filter(name => !metrics.has(name));
}

test('each ServiceMonitor selects one service, which has its ports', async t => {
	const manifests = await everything;
	const monitors = ofKind<ServiceMonitor>(manifests, 'ServiceMonitor');
	t.is(monitors.length, 2);
	for (const {metadata, spec} of monitors) {
		const selected = ofKind<Manifest & Service>(manifests, 'Service').filter(({metadata: {labels = {}}}) =>
			Object.entries(spec.selector.matchLabels).every(([name, value]) => labels[name] === value),
		);
		t.deepEqual(
			selected.map(({metadata: {name}}) => name),
			[metadata.name],
		);
		for (const {port, path} of spec.endpoints) {
			t.true(
				selected[0]?.spec?.ports?.some(({name}) => name === port),
				port,
			);
			t.is(path, '/metrics');
		}
	}
});

test('the proxies go to the ports that the sample config map gives the daemon and the relay process', async t => {
	const proxies = workloads(await everything).find(({metadata}) => metadata.name === 'osc-caa-metrics');
	const upstreams = containersOf(proxies ?? t.fail()).map(({args = []}) =>
		args.flatMap(arg => /^--upstream=http:\/\/(?<at>[\d.]+:\d+)\/$/v.exec(arg)?.groups?.['at'] ?? []),
	);
	const config = samples().find(each => nameOf(each) === 'ConfigMap peer-pods-cm') as Manifest & ConfigMap;
	const ports = [settings.metricsAt, relaySettings.metricsAt].map(({env, type}) =>
		type.parse(config.data?.[env] ?? ''),
	);
	t.deepEqual(
		upstreams,
		ports.map(at => [`${at?.host ?? ''}:${at?.port ?? 0}`]),
	);
});

test('the webhook serves its metrics where its service leads, to the namespaces of Prometheus only', async t => {
	const manifests = await everything;
	const webhook = workloads(manifests).find(({metadata}) => metadata.name === 'peer-pods-webhook');
	const [container] = containersOf(webhook ?? t.fail());
	const env = Object.fromEntries(container?.env?.map(({name, value}) => [name, value]) ?? []);
	const {metricsAt} = loadSettings(webhookSettings, env, {hostname: ''});
	const port = container?.ports?.find(({name}) => name === 'metrics')?.containerPort;
	t.deepEqual(metricsAt, {host: '0.0.0.0', port: port ?? 0});
	const [policy] = ofKind<Manifest & NetworkPolicy>(manifests, 'NetworkPolicy').filter(
		({metadata}) => metadata.name === 'peer-pods-webhook',
	);
	const rulesOfPort = policy?.spec?.ingress?.filter(({ports = []}) => ports.some(each => each.port === port)) ?? [];
	t.is(rulesOfPort.length, 1);
	t.true(rulesOfPort.every(({from = []}) => from.length > 0));
});

test("OpenShift's console and Grafana get the dashboard as it is", async t => {
	for (const [overlay, label, namespace] of [
		['monitoring-openshift', 'console.openshift.io/dashboard', 'openshift-config-managed'],
		['monitoring-operator', 'console.openshift.io/dashboard', 'openshift-config-managed'],
		['monitoring-kubernetes', 'grafana_dashboard', 'openshift-sandboxed-containers-operator'],
	] as const) {
		const [config] = ofKind<Manifest & ConfigMap>(await build(`overlays/${overlay}`), 'ConfigMap');
		t.truthy(config?.metadata.labels?.[label], overlay);
		t.is(config?.metadata.namespace, namespace);
		t.deepEqual(config?.data, {'peer-pods.json': dashboardText});
	}
});

test('the panels are of kinds that OpenShift and Grafana show, and ask for metrics that exist', t => {
	t.true(metrics.size > 50);
	const panels = dashboard.rows.flatMap(row => row.panels);
	t.deepEqual(
		panels.filter(({type}) => type !== 'graph' && type !== 'singlestat').map(({title}) => title),
		[],
	);
	t.deepEqual(unknownMetrics(queries), []);
});

test('six alerts ask for metrics that exist, and each has its section in the documentation', async t => {
	const alerts = (await rules()).groups.flatMap(group => group.rules);
	t.is(alerts.length, 6);
	t.deepEqual(unknownMetrics(alerts.map(({expr}) => expr)), []);
	for (const {alert, annotations} of alerts) {
		const [file = '', anchor] = (annotations['runbook_url'] ?? '').split('#');
		t.is(anchor, alert.toLowerCase());
		t.true(readFileSync(join(repository, file), 'utf8').includes(`\n## ${alert}\n`), alert);
	}
});

test('promtool takes the alerts and every query of the dashboard', async t => {
	const {groups} = await rules();
	const panels = {
		name: 'panels',
		rules: queries.map((expr, index) => ({record: `panel:query:${index}`, expr})),
	};
	const directory = mkdtempSync(join(tmpdir(), 'caat-rules-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	const file = join(directory, 'rules.yaml');
	writeFileSync(file, stringify({groups: [...groups, panels]}));
	const {status, output} = await promtool(['check', 'rules', file]);
	t.is(status, 0, output);
	t.true(output.includes(`${6 + queries.length} rules found`), output);
});

/** A case of promtool's rule tests: series from minute 0, and the alert at a minute. */
interface Case {
	readonly title: string;
	readonly alert: string;
	/** By series: values at each minute, in promtool's notation. */
	readonly series: Readonly<Record<string, string>>;
	readonly at: string;
	/** Labels of each firing alert, without its severity; none if absent. */
	readonly firing?: ReadonlyArray<Readonly<Record<string, string>>>;
}

const failed = 'caa_vm_starts_total{node="w1",result="failed"}';
const started = 'caa_vm_starts_total{node="w1",result="started"}';
const target = {job: 'osc-caa-metrics', endpoint: 'daemon', instance: '10.0.0.1:9643'};
const cases: readonly Case[] = [
	{
		title: 'a daemon that is gone fires after ten minutes',
		alert: 'PeerPodsTargetDown',
		series: {'up{job="osc-caa-metrics",endpoint="daemon",instance="10.0.0.1:9643"}': '1 0x20'},
		at: '12m',
		firing: [target],
	},
	{
		title: 'a restart of a daemon does not fire',
		alert: 'PeerPodsTargetDown',
		series: {'up{job="osc-caa-metrics",endpoint="daemon",instance="10.0.0.1:9643"}': '1 0x4 1x20'},
		at: '12m',
	},
	{
		title: 'the targets of others do not fire',
		alert: 'PeerPodsTargetDown',
		series: {'up{job="node-exporter",endpoint="https",instance="10.0.0.1:9100"}': '0x20'},
		at: '15m',
	},
	{
		title: 'a node without libvirt fires after five minutes, and only that node',
		alert: 'PeerPodsLibvirtUnreachable',
		series: {'caa_libvirt_connected{node="w1"}': '1 0x20', 'caa_libvirt_connected{node="w2"}': '1x20'},
		at: '7m',
		firing: [{node: 'w1'}],
	},
	{
		title: 'a connection that comes back within five minutes does not fire',
		alert: 'PeerPodsLibvirtUnreachable',
		series: {'caa_libvirt_connected{node="w1"}': '1 0x3 1x20'},
		at: '7m',
	},
	{
		title: 'starts that fail again and again fire',
		alert: 'PeerPodsStartsFail',
		series: {[failed]: '0+1x30', [started]: '5x30'},
		at: '20m',
		firing: [{node: 'w1'}],
	},
	{
		title: 'a few failures among many starts do not fire',
		alert: 'PeerPodsStartsFail',
		series: {[failed]: '0+1x30', [started]: '0+3x30'},
		at: '20m',
	},
	{
		title: 'two failures do not fire',
		alert: 'PeerPodsStartsFail',
		series: {[failed]: '0 0 0 1 1 1 2x30', [started]: '0x30'},
		at: '15m',
	},
	{
		title: 'a deletion that goes on failing fires',
		alert: 'PeerPodsDeletionStuck',
		series: {'caa_pending_deletions{node="w1"}': '0 2x40'},
		at: '25m',
		firing: [{node: 'w1'}],
	},
	{
		title: 'a deletion that succeeds at last does not fire',
		alert: 'PeerPodsDeletionStuck',
		series: {'caa_pending_deletions{node="w1"}': '0 1x10 0x40'},
		at: '25m',
	},
	{
		title: 'a pool with a twentieth left fires, one with a fifth does not',
		alert: 'PeerPodsPoolAlmostFull',
		series: {
			'caa_pool_available_bytes{node="w1"}': '50x20',
			'caa_pool_capacity_bytes{node="w1"}': '1000x20',
			'caa_pool_available_bytes{node="w2"}': '200x20',
			'caa_pool_capacity_bytes{node="w2"}': '1000x20',
		},
		at: '15m',
		firing: [{node: 'w1'}],
	},
	{
		title: 'many packets from strangers fire',
		alert: 'PeerPodsTunnelPacketsDropped',
		series: {'caa_tunnel_packets_dropped_total{node="w1"}': '0+50x20'},
		at: '10m',
		firing: [{node: 'w1'}],
	},
	{
		title: 'the last packets of VMs that have ended do not fire',
		alert: 'PeerPodsTunnelPacketsDropped',
		series: {'caa_tunnel_packets_dropped_total{node="w1"}': '0 0 20 20 20 35x20'},
		at: '10m',
	},
];

test('every alert has a case in which it fires and one in which it does not', async t => {
	const alerts = (await rules()).groups.flatMap(group => group.rules.map(({alert}) => alert));
	for (const alert of alerts) {
		const own = cases.filter(each => each.alert === alert);
		t.true(
			own.some(({firing}) => firing !== undefined),
			alert,
		);
		t.true(
			own.some(({firing, series}) => firing === undefined || Object.keys(series).length > firing.length),
			alert,
		);
	}
});

for (const {title, alert, series, at, firing = []} of cases) {
	test(`${alert}: ${title}`, async t => {
		const {groups} = await rules();
		const rule = groups.flatMap(group => group.rules).find(each => each.alert === alert) ?? t.fail();
		const directory = mkdtempSync(join(tmpdir(), 'caat-rules-'));
		t.teardown(async () => rm(directory, {recursive: true}));
		writeFileSync(join(directory, 'rules.yaml'), stringify({groups}));
		const {severity} = (rule as unknown as {labels: {severity: string}}).labels;
		const file = join(directory, 'test.yaml');
		const testOf = (alertsAt: ReadonlyArray<Readonly<Record<string, string>>>): string =>
			stringify({
				rule_files: ['rules.yaml'],
				evaluation_interval: '1m',
				tests: [
					{
						interval: '1m',
						input_series: Object.entries(series).map(([name, values]) => ({series: name, values})),
						alert_rule_test: [
							{
								eval_time: at,
								alertname: alert,
								exp_alerts: alertsAt.map(labels => ({
									exp_labels: {...labels, severity},
									exp_annotations: rendered.get(labels) ?? {},
								})),
							},
						],
					},
				],
			});
		// The annotations are templates: promtool tells what it made of them, and they must have no gap.
		const rendered = new Map<Readonly<Record<string, string>>, Readonly<Record<string, string>>>();
		if (firing.length > 0) {
			writeFileSync(file, testOf(firing));
			const {output} = await promtool(['test', 'rules', file]);
			for (const labels of firing) {
				rendered.set(labels, annotationsIn(output, Object.keys(rule.annotations)));
			}

			t.false(/<no value>|Labels:\{\}/v.test(output), output);
		}

		writeFileSync(file, testOf(firing));
		const {status, output} = await promtool(['test', 'rules', file]);
		t.is(status, 0, output);
	});
}

/** The annotations of the alert that promtool got. */
function annotationsIn(output: string, names: readonly string[]): Readonly<Record<string, string>> {
	const got = output.slice(output.indexOf('got:'));
	return Object.fromEntries(
		names.map(name => {
			const {value = '""'} = new RegExp(`${name}=(?<value>"(?:[^"\\\\]|\\\\.)*")`, 'v').exec(got)?.groups ?? {};
			return [name, JSON.parse(value) as string];
		}),
	);
}
