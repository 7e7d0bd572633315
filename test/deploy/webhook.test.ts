/** The webhook's manifests and its code agree: where reviews and probes go, for which pods, with which certificate. */
import {once} from 'node:events';
import {get, type IncomingMessage} from 'node:http';
import test from 'ava';
import type {MutatingWebhook, MutatingWebhookConfiguration} from 'kubernetes-types/admissionregistration/v1.js';
import type {Container} from 'kubernetes-types/core/v1.js';
import type {RuntimeClass} from 'kubernetes-types/node/v1.js';
import {loadSettings} from '../../src/config/config.ts';
import {webhookSettings} from '../../src/cli/webhook-settings.ts';
import {webhookOf} from '../webhook/harness.ts';
import {podOf, reviewOf} from '../webhook/pods.ts';
import {build, containersOf, ofKind, workloads, type Manifest, type Workload} from './manifests.ts';

interface Parts {
	readonly manifests: readonly Manifest[];
	readonly webhook: MutatingWebhook;
	readonly workload: Workload;
	readonly container: Container;
}

const parts = (async (): Promise<Parts> => {
	const manifests = await build('overlays/openshift');
	const [webhook] = ofKind<Manifest & MutatingWebhookConfiguration>(
		manifests,
		'MutatingWebhookConfiguration',
	).flatMap(({webhooks = []}) => webhooks);
	const workload = workloads(manifests).find(({metadata}) => metadata.name === 'peer-pods-webhook');
	const [container] = workload === undefined ? [] : containersOf(workload);
	if (webhook === undefined || workload === undefined || container === undefined) {
		throw new Error('There is no webhook');
	}

	return {manifests, webhook, workload, container};
})();

test('the paths in the webhook configuration and in the probes are answered', async t => {
	const {webhook, container} = await parts;
	const running = await webhookOf(t);
	const body = JSON.stringify(reviewOf(podOf([{name: 'a'}])));
	t.is((await running.client.call({path: webhook.clientConfig.service?.path ?? '', body})).status, 200);
	t.is((await running.client.call({path: '/', body})).status, 404);
	for (const probe of [container.readinessProbe, container.livenessProbe]) {
		const [response] = (await once(
			get({port: running.webhook.probePort, path: probe?.httpGet?.path}),
			'response',
		)) as [IncomingMessage];
		response.resume();
		t.is(response.statusCode, 200, probe?.httpGet?.path);
	}
});

test('ports, certificate directory and time to drain are those of the code', async t => {
	const {workload, container} = await parts;
	const config = loadSettings(
		webhookSettings,
		Object.fromEntries(container.env?.map(({name, value}) => [name, value]) ?? []),
		{hostname: ''},
	);
	t.deepEqual(
		container.ports?.map(({name, containerPort}) => [name, containerPort]),
		[
			['webhook', config.webhookPort],
			['probes', config.webhookProbePort],
			['metrics', config.metricsAt?.port],
		],
	);
	t.true(container.volumeMounts?.some(({mountPath}) => mountPath === config.webhookCertDir));
	t.true(
		(workload.spec.template.spec.terminationGracePeriodSeconds ?? 30) * 1000 > config.webhookDrainDelayMs + 10_000,
	);
});

test('the API server, the webhook and the runtime class select the same pods, at creation', async t => {
	const {manifests, webhook, container} = await parts;
	const {targetRuntimeClass} = loadSettings(
		webhookSettings,
		Object.fromEntries(container.env?.map(({name, value}) => [name, value]) ?? []),
		{hostname: ''},
	);
	t.true(
		ofKind<Manifest & RuntimeClass>(manifests, 'RuntimeClass').some(
			({metadata}) => metadata.name === targetRuntimeClass,
		),
	);
	t.true(
		webhook.matchConditions?.some(({expression}) =>
			expression.includes(`object.spec.runtimeClassName == '${targetRuntimeClass}'`),
		),
	);
	t.deepEqual(
		webhook.rules?.map(({operations}) => operations),
		[['CREATE']],
	);
	t.is(webhook.sideEffects, 'None');
});
