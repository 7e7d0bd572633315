// What somebody who is on no node may delete, on a real libvirt (libvirt-host.ts says what is real).
import {randomBytes} from 'node:crypto';
import test from 'ava';
import {deleteAbandonedVm, type AbandonedVm} from '../../src/podvm/abandoned-vms.ts';
import {specOf} from '../contract/pod-vms.ts';
import {recordingLog} from '../support/recording-log.ts';
import {domainsNaming, never, podVmsOn, startLibvirtHost, type LibvirtHost} from './libvirt-host.ts';

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

test('only the VM with the right cluster, node, pod and name is deleted, together with its disks', async t => {
	const [pool, cluster, log] = [await host.pool(), randomBytes(6).toString('hex'), recordingLog()];
	const vms = podVmsOn(host.calls, pool, {cluster, node: 'worker-0', log});
	const spec = specOf();
	await vms.start(spec, never);
	const meant: AbandonedVm = {
		instanceName: spec.instanceName,
		node: 'worker-0',
		pod: {name: spec.pod.name, namespace: spec.pod.namespace},
	};
	const options = {session: host.calls, cluster, log};
	const files = await pool.files();
	for (const other of [
		{...meant, node: 'worker-1'},
		{...meant, pod: {...meant.pod, namespace: 'elsewhere'}},
		{...meant, pod: {...meant.pod, name: 'another'}},
		{...meant, instanceName: `${meant.instanceName}x`},
	]) {
		t.false(await deleteAbandonedVm(options, other, never));
	}

	t.false(await deleteAbandonedVm({...options, cluster: 'another'}, meant, never));
	t.is((await domainsNaming(host.calls, cluster)).length, 1);
	t.deepEqual(await pool.files(), files);
	t.true(log.lines.some(({level, message}) => level === 'warn' && message.includes('not deleting')));
	t.true(await deleteAbandonedVm(options, meant, never));
	t.deepEqual(await domainsNaming(host.calls, cluster), []);
	t.deepEqual(await pool.files(), []);
	t.false(await deleteAbandonedVm(options, meant, never));
});
