import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {writeConfigMap} from '../../src/kubernetes/config-map.ts';
import {testCluster} from './cluster.ts';
import {configMaps} from './kinds.ts';

test('keys are set, and all others are left', async t => {
	const {client, signal} = await testCluster(t);
	await client.create(
		configMaps,
		'default',
		{metadata: {name: 'peer-pods-cm'}, data: {LIBVIRT_POOL: 'default', LIBVIRT_VOL_NAME: 'old'}},
		signal,
	);
	await writeConfigMap(
		client,
		{name: 'peer-pods-cm', namespace: 'default'},
		{LIBVIRT_VOL_NAME: 'new', LIBVIRT_IMAGE_ID: 'new'},
		signal,
	);
	t.deepEqual((await client.get(configMaps, {name: 'peer-pods-cm', namespace: 'default'}, signal)).data, {
		LIBVIRT_POOL: 'default',
		LIBVIRT_VOL_NAME: 'new',
		LIBVIRT_IMAGE_ID: 'new',
	});
});

test('a missing config map is not created', async t => {
	const {client, signal} = await testCluster(t);
	await t.throwsAsync(writeConfigMap(client, {name: 'peer-pods-cm', namespace: 'default'}, {A: 'b'}, signal), {
		instanceOf: AdaptorError,
		message: /does not exist.*-namespace/v,
	});
});
