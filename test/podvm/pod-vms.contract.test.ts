// The port's promises, kept by the implementation on libvirt and by the one in memory. libvirt-host.ts says what is real here.
import {randomBytes} from 'node:crypto';
import test from 'ava';
import {procedures} from '../../src/libvirt/procedures.ts';
import {podVmsContract} from '../contract/pod-vms.ts';
import {InMemoryKvmHost, InMemoryPodVms} from '../support/in-memory-pod-vms.ts';
import {baseVolume, domainsNaming, never, podVmsOn, startLibvirtHost, type LibvirtHost} from './libvirt-host.ts';

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

podVmsContract(test, 'in memory', async () => {
	const memory = new InMemoryKvmHost();
	memory.images.add('other.qcow2');
	return {
		podVms: (node, podsDir) => new InMemoryPodVms({host: memory, node, ...(podsDir === undefined ? {} : {podsDir})}),
		otherImage: 'other.qcow2',
		kill: async name => memory.kill(name),
		leftovers: async () => [...memory.vms.keys()],
	};
});

podVmsContract(test, 'on libvirt', async () => {
	const pool = await host.pool();
	const cluster = randomBytes(6).toString('hex');
	return {
		podVms: (node, podsDir = '/run/peerpod/pods') => podVmsOn(host.calls, pool, {
			cluster, node, volumeName: baseVolume, ...(podsDir === null ? {} : {podsDir: {fingerprint: Buffer.from(podsDir).toString('hex'), path: podsDir}}),
		}),
		otherImage: pool.otherVolume,
		kill: async name => {
			const {dom} = await host.calls.call(procedures.domainLookupByName, {name}, never);
			await host.calls.call(procedures.domainDestroyFlags, {dom, flags: 0}, never);
		},
		leftovers: async () => [...await domainsNaming(host.calls, cluster), ...await pool.files()],
	};
});
