// The port's promises, kept by the implementation on libvirt and by the one in memory. libvirt-host.ts says what is
// real here.
import {randomBytes} from 'node:crypto';
import {mkdir, rm} from 'node:fs/promises';
import test from 'ava';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
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
		podVms: (node, podsDir) =>
			new InMemoryPodVms({host: memory, node, ...(podsDir === undefined ? {} : {podsDir})}),
		otherImage: 'other.qcow2',
		kill: async name => memory.kill(name),
		async obstruct(name) {
			memory.stuck.add(name);
			return {part: `${name}-cidata.iso`, left: [name], clear: async () => void memory.stuck.delete(name)};
		},
		leftovers: async () => [...memory.vms.keys()],
	};
});

podVmsContract(test, 'on libvirt', async () => {
	const pool = await host.pool();
	const cluster = randomBytes(6).toString('hex');
	return {
		podVms: (node, podsDir = '/run/peerpod/pods') =>
			podVmsOn(host.calls, pool, {
				cluster,
				node,
				volumeName: baseVolume,
				...(podsDir === null
					? {}
					: {podsDir: {fingerprint: Buffer.from(podsDir).toString('hex'), path: podsDir}}),
			}),
		otherImage: pool.otherVolume,
		kill: async name => {
			const {dom} = await host.calls.call(procedures.domainLookupByName, {name}, never);
			await host.calls.call(procedures.domainDestroyFlags, {dom, flags: 0}, never);
		},
		async obstruct(name) {
			// What libvirt takes for the volume is a directory with something in it.
			const file = `${name}-cidata.iso`;
			await rm(`${pool.directory}/${file}`);
			await mkdir(`${pool.directory}/${file}/something`, {recursive: true});
			return {
				part: file,
				left: [name, file],
				clear: async () => rm(`${pool.directory}/${file}`, {recursive: true}),
			};
		},
		leftovers: async () => [...(await domainsNaming(host.calls, cluster)), ...(await pool.files())],
	};
});
