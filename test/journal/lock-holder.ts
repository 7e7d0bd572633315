/**
 * A daemon's share in the lock, as a process of its own: takes a number, says who else it sees, and holds it until its
 * standard input ends or it is killed.
 */
import {lockPodsDir} from '../../src/journal/daemon-lock.ts';
import {recordingLog} from '../support/recording-log.ts';

const log = recordingLog();
await using lock = await lockPodsDir(process.argv[2] ?? '', log);
const errors = log.lines.filter(({level}) => level === 'error').map(({message}) => message);
process.stdout.write(
	`${JSON.stringify({hasPredecessor: lock.hasPredecessor(), hasSuccessor: await lock.hasSuccessor(), errors})}\n`,
);
process.stdin.resume();
await new Promise(resolve => {
	process.stdin.once('end', resolve);
});
