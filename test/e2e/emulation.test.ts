/**
 * What the other tests stand on: a pod VM that is emulated does not lose its network. QEMU before 8.1 drops the memory
 * barriers of a guest that can never have a second CPU. Guest and devices then miss each other's notifications, here
 * after 24,000 to 180,000 packets, and no packet passes any more. The first barrier shows whether QEMU drops them.
 */
import test from 'ava';
import {once} from 'node:events';
import {writeFile} from 'node:fs/promises';
import {text} from 'node:stream/consumers';
import {domainXml} from '../../src/podvm/domain-xml.ts';
import {buildGuestImage} from '../lab/image.ts';
import {startLab} from '../lab/lab.ts';
import {names} from '../lab/topology.ts';

const {signal} = new AbortController();

/**
 * Reads QEMU's log of what it translates: the guest's instructions, a block at a time, each followed by what QEMU makes
 * of it. `br %r0` with the mask 14 or 15 goes nowhere and is Linux's barrier (arch/s390/include/asm/barrier.h).
 */
const verdict = String.raw`
	/^IN:/ && barrier { print "dropped"; exit }
	/07[ef]0 +br +%r0/ { barrier = 1 }
	/^ mb / && barrier { print "kept"; exit }
`;

test('an emulated VM of one CPU keeps its memory barriers, and so its network', async t => {
	t.timeout(600_000);
	await using lab = await startLab({image: await buildGuestImage({}, signal), signal});
	const absent = {absent: 'off', reason: 'not wanted', remedy: ''} as const;
	const name = 'podvm-one-cpu';
	const seed = `${name}-cidata`;
	await writeFile(
		lab.outside('/run/domain.xml'),
		domainXml({
			name,
			uuid: '6695eb01-f6a4-8304-79aa-97f2502e193e',
			mac: '52:54:00:00:00:01',
			vcpus: 1,
			memoryMib: 256,
			network: names.network,
			host: {domainType: 'qemu', machine: 's390-ccw-virtio', emulator: '/usr/bin/qemu-system-s390x', cpus: []},
			protection: {filter: absent, isolation: absent},
			metadata: {
				sandboxId: '0123456789abcdef',
				vni: 1,
				createdAt: new Date(0),
				nonce: '00',
				cluster: 'lab',
				node: 'worker-0',
				pod: {name: 'one', namespace: 'e2e'},
				pool: names.pool,
				baseImage: names.baseVolume,
				rootVolume: names.baseVolume,
				cidataVolume: seed,
			},
		}),
	);
	await lab.virsh('vol-create-as', names.pool, seed, '1M');
	await once(lab.hostRun(['mkfifo', '/run/translated'], {stdio: 'inherit'}), 'close');
	const reader = lab.hostRun(['awk', verdict, '/run/translated'], {stdio: ['ignore', 'pipe', 'inherit']});
	if (reader.stdout === null) {
		throw new TypeError('stdout is a pipe');
	}

	const said = Promise.all([text(reader.stdout), once(reader, 'close')]);
	await lab.virsh(`define /run/domain.xml; start --paused ${name}`);
	t.is((await lab.virsh('vcpucount', '--live', '--current', name)).trim(), '1');
	await lab.virsh('qemu-monitor-command', '--hmp', name, 'logfile /run/translated');
	await lab.virsh('qemu-monitor-command', '--hmp', name, 'log in_asm,op');
	await lab.virsh('resume', name);
	t.is((await said)[0], 'kept\n');
});
